"""Exports of every kind of model from every layout and back, and what they say when they cannot."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_trainjob.exit_codes import ExitCode
from tests.support.models import tiny_model
from tests.support.ranks import conversion, source_ranks, tiny_run
from tests.support.ranks.exporting import export
from tests.support.ranks.pool import gloo_ranks
from tests.support.ranks.source_ranks import lay_out_hub

pytestmark = pytest.mark.dist

ROUND_TRIPS = (
    "deepseek_v3",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama_tied", "qwen3_moe")),
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama_bias", "qwen2_odd", "glm4", "phi3")),
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return lambda name, **settings: tiny_model.make(name, root, dtype="bfloat16", **settings)


@pytest.fixture(scope="module")
def checkpoint(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mcore") / "llama"
    assert export(to_mcore=True, model=models("llama"), output_dir=folder).exit_code == 0
    return folder


def same_weights(one, other):
    """Bit by bit, in type as well; but the balance of experts is always written in float32."""
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert first.keys() == second.keys()
    widened = [name for name in first if first[name].dtype != second[name].dtype]
    assert [name for name in widened if not name.endswith("e_score_correction_bias")] == []
    assert [name for name in first if not torch.equal(first[name].float(), second[name].float())] == []


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_a_model_comes_back_bit_by_bit_and_passes_the_precision_test_both_ways(models, name, tmp_path):
    model = models(name)
    given = {"test_convert_precision": True}
    there = export(to_mcore=True, model=model, output_dir=tmp_path / "mcore", **given)
    assert there.exit_code == 0, (there.message, there.comparison)
    back = export(to_hf=True, mcore_model=tmp_path / "mcore", output_dir=tmp_path / "hf", **given)
    assert back.exit_code == 0, (back.message, back.comparison)
    same_weights(model, tmp_path / "hf")


@pytest.mark.parametrize(
    ("name", "settings", "layout"),
    [
        ("qwen2_odd", {}, {"tensor_model_parallel_size": 2}),
        pytest.param("llama", {"num_key_value_heads": 1}, {"tensor_model_parallel_size": 2}, marks=pytest.mark.slow),
        pytest.param("deepseek_v2", {}, {"pipeline_model_parallel_size": 2}, marks=pytest.mark.slow),
        ("qwen3_moe", {}, {"expert_model_parallel_size": 2}),
        pytest.param("llama", {}, {"context_parallel_size": 2}, marks=pytest.mark.slow),
    ],
)
def test_what_a_run_left_in_any_layout_is_exported_as_the_run_itself_exports_it(
    models, name, settings, layout, tmp_path
):
    data = tiny_run.write_data(tmp_path / "train.jsonl")
    given = {"torch_dtype": "bfloat16", "train_iters": 1, "to_hf": True, **layout}
    run = tiny_run.train(tiny_run.arguments(models(name, **settings), data, tmp_path / "run", **given), ranks=2)
    assert run.exit_code == 0, run.message
    done = export(to_hf=True, mcore_model=tmp_path / "run", output_dir=tmp_path / "out", test_convert_precision=True)
    assert done.exit_code == 0, (done.message, done.comparison)
    whole = {}
    for path in (tmp_path / "run" / "hf").glob("*.safetensors"):
        whole |= load_file(path)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == whole.keys()
    assert [key for key in whole if not torch.equal(whole[key], written[key])] == []


def test_training_goes_on_from_a_converted_checkpoint_and_from_a_peft_folder(models, checkpoint, tmp_path):
    data = tiny_run.write_data(tmp_path / "train.jsonl")
    common = {"train_type": "lora", "train_iters": 2, "lr": 1e-2, "torch_dtype": "bfloat16", "lora_dropout": 0.0}

    def train(name, **given):
        run = tiny_run.train(tiny_run.arguments(models("llama"), data, tmp_path / name, **{**common, **given}))
        assert run.exit_code == 0, run.message
        return run

    first = train("first")
    assert train("loaded", load=str(checkpoint)).column("lm loss") == first.column("lm loss")
    ours = train("ours", adapter_load=str(first.folder), finetune=True)
    peft = train("peft", adapter_load=str(first.folder / "adapter"))
    assert peft.column("lm loss") == ours.column("lm loss")
    assert peft.column("lm loss")[0] < first.column("lm loss")[0]


def test_a_model_of_the_hub_is_found_as_training_finds_it(models, tmp_path):
    """Named itself, and by the args.json of a run that took it from there, at its revision; offline, from the cache."""
    first, second = models("llama", seed=1), models("llama", seed=2)
    cache = str(lay_out_hub(tmp_path / "hub", main=first, second=second))
    data = tiny_run.write_data(tmp_path / "train.jsonl")
    hub = {"use_hf": True, "model_revision": "second"}
    settings = {"train_iters": 1, "torch_dtype": "bfloat16", "train_type": "lora", **hub}
    arguments = tiny_run.arguments(Path("tiny/llama"), data, tmp_path / "run", **settings)
    (run,) = gloo_ranks(1).run(source_ranks.train_from_hub, cache, arguments)
    assert run.exit_code == 0, run.message

    def from_hub(**given):
        given = {"output_dir": str(tmp_path / f"out{len(list(tmp_path.iterdir()))}"), **given}
        return gloo_ranks(1).run(source_ranks.export_from_hub, cache, given)[0], Path(given["output_dir"])

    there, mcore = from_hub(to_mcore=True, model="tiny/llama", **hub)
    assert there.exit_code == 0, there.message
    back = export(to_hf=True, mcore_model=mcore, output_dir=tmp_path / "hf")
    assert back.exit_code == 0, back.message
    same_weights(second, tmp_path / "hf")
    merged, folder = from_hub(to_hf=True, mcore_adapters=[str(tmp_path / "run")], test_convert_precision=True)
    assert merged.exit_code == 0, (merged.message, merged.comparison)
    weights, base = (load_file(path / "model.safetensors") for path in (folder, second))
    assert torch.equal(weights["model.embed_tokens.weight"], base["model.embed_tokens.weight"])
    refused, _ = from_hub(to_mcore=True, model="tiny/llama")
    assert refused.exit_code == ExitCode.MISSING_INPUT
    assert "to fetch a repository of the Hugging Face Hub, set use_hf: true" in refused.message


def test_torch_dtype_is_the_type_that_is_written(checkpoint, tmp_path):
    done = export(to_hf=True, mcore_model=checkpoint, torch_dtype="float32", output_dir=tmp_path / "hf")
    assert done.exit_code == 0, done.message
    assert {t.dtype for t in load_file(tmp_path / "hf" / "model.safetensors").values()} == {torch.float32}
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == "float32"


def damaged(checkpoint, folder):
    shutil.copytree(checkpoint, folder)
    file = next((folder / "iter_0000001").glob("*.distcp"))
    file.write_bytes(file.read_bytes()[:-7])
    return folder


@pytest.mark.parametrize(
    ("case", "code", "message"),
    [
        ("no folder", ExitCode.MISSING_INPUT, "args.mcore_model: the folder does not exist"),
        ("a hugging face folder", ExitCode.CHECKPOINT_INCOMPATIBLE, "args.mcore_model: "),
        ("an empty folder", ExitCode.MISSING_INPUT, "has no checkpoint; name the folder with iter_NNNNNNN"),
        ("a damaged checkpoint", None, "complete checkpoint"),
        ("the model is gone", ExitCode.MISSING_INPUT, "args.json names this folder, which does not exist; set model"),
        ("output is input", ExitCode.BAD_ARGUMENTS, "args.output_dir: is what the export reads; choose another folder"),
        ("a full disk", ExitCode.OUTPUT_NOT_WRITABLE, "could not write"),
        ("an adapter that is a model", ExitCode.MISSING_INPUT, "holds a whole model; pass it as mcore_model"),
        ("no index", ExitCode.MISSING_INPUT, "has no weights (model.safetensors, model.safetensors.index.json"),
        ("an unknown family", ExitCode.UNSUPPORTED, "this model family is not known; known are deepseek_v2"),
    ],
)
def test_what_cannot_be_exported_is_said_with_its_argument_and_what_to_do(
    models, checkpoint, tmp_path, case, code, message
):
    model = models("llama")
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(model / "config.json", bare)
    to_hf = {"to_hf": True, "output_dir": tmp_path / "out"}
    to_mcore = {"to_mcore": True, "output_dir": tmp_path / "out"}
    moved = tmp_path / "moved"
    if case == "the model is gone":
        shutil.copytree(checkpoint, moved)
        record = json.loads((moved / "args.json").read_text())
        record["arguments"]["model"] = "/data/model-of-another-machine"
        (moved / "args.json").write_text(json.dumps(record))
    if case == "an unknown family":
        (bare / "config.json").write_text('{"model_type": "gpt_neo"}')
    given = {
        "no folder": to_hf | {"mcore_model": tmp_path / "nowhere"},
        "a hugging face folder": to_hf | {"mcore_model": model},
        "an empty folder": to_hf | {"mcore_model": tmp_path},
        "a damaged checkpoint": to_hf | {"mcore_model": damaged(checkpoint, tmp_path / "damaged")},
        "the model is gone": to_hf | {"mcore_model": moved},
        "output is input": to_mcore | {"model": model, "output_dir": model, "exist_ok": True},
        "a full disk": to_hf | {"mcore_model": checkpoint, "output_dir": "/dev/full/out"},
        "an adapter that is a model": to_hf | {"mcore_adapters": [str(checkpoint)]},
        "no index": to_mcore | {"model": bare},
        "an unknown family": to_mcore | {"model": bare},
    }[case]
    refused = export(**given)
    assert message in refused.message
    assert code is None or refused.exit_code == code
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*.partial"))


def test_an_adapter_that_peft_made_is_merged_as_peft_merges_it(models, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = models("qwen3_moe")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=["o_proj"], init_lora_weights=False)
    adapted = get_peft_model(model, settings)
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "peft")
    given = {"to_hf": True, "mcore_adapters": [str(tmp_path / "adapter")], "torch_dtype": "float32"}
    done = export(**given, model=base, output_dir=tmp_path / "ours", test_convert_precision=True)
    assert done.exit_code == 0, (done.message, done.comparison)
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "peft"))
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-6


def test_the_program_converts_helps_and_ends_with_a_code(models, checkpoint, tmp_path):
    def program(*words):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [sys.executable, "-m", "megatron_trainer", "export", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert "--test_convert_precision" in program("--help").stdout
    wrong = program("--to_hf", "true", "--max_shard_size", "many", "--push_to_hub", "true")
    assert wrong.returncode == ExitCode.BAD_ARGUMENTS
    for told in (
        "args.max_shard_size: ",
        "args.to_hf: needs the checkpoint to convert",
        "args.push_to_hub: needs hub_model_id",
    ):
        assert told in wrong.stderr
    done = program("--to_hf", "--mcore_model", str(checkpoint), "--output_dir", str(tmp_path / "hf"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"written: {tmp_path / 'hf'} (")
    assert done.stderr == ""
    same_weights(models("llama"), tmp_path / "hf")


@pytest.mark.slow
def test_parallel_sizes_change_nothing_for_one_process_reads_every_layout(checkpoint, tmp_path):
    sizes = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}
    split = export(to_hf=True, mcore_model=checkpoint, output_dir=tmp_path / "split", **sizes)
    assert split.exit_code == 0, split.message
    assert export(to_hf=True, mcore_model=checkpoint, output_dir=tmp_path / "one").exit_code == 0
    assert (tmp_path / "split" / "model.safetensors").read_bytes() == (
        tmp_path / "one" / "model.safetensors"
    ).read_bytes()


def test_ranks_that_cannot_write_leave_nothing_behind(models, tmp_path):
    (tmp_path / "file").write_text("")
    told = gloo_ranks(2).run(conversion.unwritable, models("llama"), tmp_path / "file" / "hf", {})
    assert told[0].startswith("OUTPUT_NOT_WRITABLE could not write")


def test_the_precision_test_needs_no_tokenizer_and_holds_to_1e_4(llama, tmp_path):
    """transformers would make an empty tokenizer of the settings that are left."""
    bare = shutil.copytree(llama, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer.json", "chat_template*"))
    settings = json.loads((bare / "tokenizer_config.json").read_text())
    (bare / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": "LlamaTokenizer"}))
    done = export(to_mcore=True, model=bare, output_dir=tmp_path / "mcore", test_convert_precision=True)
    assert done.exit_code == 0, done.message
    text = " ".join(done.comparison)
    assert "random tokens" in text
    assert "bound 1e-04" in text
    assert "precision test: passed" in text
