"""Adapters that PEFT itself made, with an A of their own for q, k, v and for gate, up: a start, and merged."""

import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.support.models import tiny_model
from tests.support.ranks.exporting import export
from tests.support.ranks.lora_ranks import token_ids
from tests.support.ranks.tiny_run import arguments, train, write_data

pytestmark = pytest.mark.dist

NUMBERS = {"lora_rank": 4, "lora_alpha": 8}
TARGETS = {
    "every linear": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "peft's own choice": ["q_proj", "v_proj"],
    "queries alone": ["q_proj"],
}
LAYOUTS = {
    "every linear": (2, {"tensor_model_parallel_size": 2, "target_modules": ["all-linear"]}),
    "peft's own choice": (1, {"target_modules": ["linear_qkv"]}),
    "queries alone": (2, {"pipeline_model_parallel_size": 2, "target_modules": ["linear_qkv"]}),
}


def ordinary(model, folder, targets, **given):
    """An adapter as PEFT saves it, B random; its logits."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM", **given)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    adapted.save_pretrained(folder)
    return logits(adapted)


@torch.no_grad()
def logits(model):
    return model.eval()(token_ids()).logits


def with_adapter(model, folder):
    return logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), folder))


@pytest.mark.parametrize(
    ("which", "rslora"),
    [
        pytest.param("every linear", False, marks=pytest.mark.slow),
        ("peft's own choice", True),
        ("queries alone", False),
    ],
)
def test_a_run_starts_from_an_ordinary_adapter_and_writes_one_that_peft_loads(llama, tmp_path, which, rslora):
    expected = ordinary(llama, tmp_path / "peft", TARGETS[which], use_rslora=rslora)
    ranks, layout = LAYOUTS[which]
    given = {**NUMBERS, **layout, "use_rslora": rslora, "adapter_load": str(tmp_path / "peft"), "finetune": True}
    data = write_data(tmp_path / "train.jsonl")
    still = arguments(llama, data, tmp_path / "run", train_type="lora", lr=1e-12, train_iters=1, **given)
    run = train(still, ranks=ranks)
    assert (run.exit_code, run.message) == (0, "")
    assert torch.allclose(with_adapter(llama, run.folder / "adapter"), expected, atol=1e-4)
    done = export(to_hf=True, mcore_adapters=[str(run.folder)], output_dir=tmp_path / "merged", merge_lora=True)
    assert done.exit_code == 0, done.message
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert torch.allclose(logits(merged), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", pytest.param("qwen3", marks=pytest.mark.slow)])
def test_an_ordinary_adapter_is_merged_as_peft_merges_it(name, model_root, tmp_path):
    model = tiny_model.make(name, model_root)
    ordinary(model, tmp_path / "peft", TARGETS["every linear"])
    given = {"model": model, "mcore_adapters": [str(tmp_path / "peft")], "merge_lora": True}
    done = export(to_hf=True, output_dir=tmp_path / "ours", **given)
    assert done.exit_code == 0, done.message
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    PeftModel.from_pretrained(base, tmp_path / "peft").merge_and_unload().save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_file(tmp_path / side / "model.safetensors") for side in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[key], theirs[key], atol=1e-6) for key in theirs)


@pytest.mark.slow
def test_training_goes_on_from_its_checkpoint_with_the_same_widths(llama, tmp_path):
    ordinary(llama, tmp_path / "peft", TARGETS["every linear"])
    data = write_data(tmp_path / "train.jsonl")
    given = {
        **NUMBERS,
        "train_type": "lora",
        "adapter_load": str(tmp_path / "peft"),
        "finetune": True,
        "train_iters": 4,
    }
    whole = train(arguments(llama, data, tmp_path / "whole", **given))
    assert (whole.exit_code, whole.message) == (0, "")
    split = arguments(llama, data, tmp_path / "split", **given)
    assert train(split, stop_at=2, resume="Auto").exit_code == 143
    resumed = train(split, resume="Required", attempt=1)
    assert resumed.column("lm loss") == pytest.approx(whole.column("lm loss"), abs=1e-5)


def test_adapters_beside_those_of_experts_are_trained_and_loaded_by_peft(model_root, tmp_path):
    """qwen2_moe has shared experts beside the routed ones."""
    model = tiny_model.make("qwen2_moe", model_root)
    data = write_data(tmp_path / "train.jsonl")
    trained = train(arguments(model, data, tmp_path / "run", train_type="lora", train_iters=1))
    assert (trained.exit_code, trained.message) == (0, "")
    (adapter,) = (path.parent for path in (tmp_path / "run").rglob("adapter_config.json"))
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        PeftModel.from_pretrained(base, adapter)
    found = [str(each.message) for each in said]
    assert not [text for text in found if "missing adapter" in text or "nexpected" in text]
