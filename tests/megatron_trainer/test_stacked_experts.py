"""Experts stacked in one tensor of a file: read in both forms, written in the form of the source, in every layout."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from megatron_trainer.convert import adapter_source, stacked_adapter, stacking
from megatron_trainer.models.spec import read_model
from megatron_trainjob import weight_files
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.families import read, stacks
from tests.support.matrix import mostly_slow
from tests.support.models import tiny_model
from tests.support.ranks import conversion, lora_ranks
from tests.support.ranks.pool import gloo_ranks

STACKS = (".experts.gate_up_proj", ".experts.down_proj")
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one rank": (1, {}),
    "ep2": (2, {"expert_model_parallel_size": 2}),
    "tp2": (2, {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
    "pp2": (2, {"pipeline_model_parallel_size": 2}),
}


def published(source: Path, folder: Path) -> Path:
    """The same model with rows and columns of experts exchanged, as its publisher stores them."""
    shutil.copytree(source, folder)
    stored = load_file(folder / "model.safetensors")
    exchanged = {
        name: tensor.transpose(1, 2).contiguous() if name.endswith(STACKS) else tensor
        for name, tensor in stored.items()
    }
    save_file(exchanged, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def of_the_modules(source: Path, folder: Path) -> Path:
    """The same model with the tensors that transformers' modules have."""
    shutil.copytree(source, folder)
    whole = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.bfloat16).state_dict()
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def with_prediction(source: Path, folder: Path) -> Path:
    """The same model with a layer that predicts a token further on, of the names that Qwen3.5 has for its parts."""
    shutil.copytree(source, folder)
    stored = load_file(folder / "model.safetensors")
    layer = "model.language_model.layers.1."
    shapes = {
        **{f"mtp.layers.0.{name.removeprefix(layer)}": each.shape for name, each in stored.items() if layer in name},
        **dict.fromkeys(("mtp.norm.weight", "mtp.pre_fc_norm_hidden.weight"), (64,)),
        "mtp.fc.weight": (64, 128),
    }
    draw = torch.Generator().manual_seed(5)
    further = {name: torch.randn(shape, generator=draw).bfloat16() for name, shape in shapes.items()}
    save_file({**stored, **further}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.dist
@pytest.mark.parametrize(
    ("form", "layout"),
    mostly_slow(
        [(form, layout) for form in ("published", "of the modules") for layout in LAYOUTS],
        [("published", "ep2"), ("of the modules", "tp2")],
    ),
)
def test_stacks_come_back_bit_by_bit_in_the_form_of_the_source(form, layout, model_root, tmp_path):
    source = tiny_model.make("qwen3_vl_moe", model_root, dtype="bfloat16")
    if form == "published":
        source = published(source, tmp_path / "published")
    ranks, settings = LAYOUTS[layout]
    gloo_ranks(ranks).run(conversion.convert, source, tmp_path / "out", settings)
    assert_same_tensors(source, tmp_path / "out")


def assert_same_tensors(source: Path, out: Path) -> None:
    before = load_file(source / "model.safetensors")
    after = {name: tensor for file in sorted(out.glob("*.safetensors")) for name, tensor in load_file(file).items()}
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


@pytest.mark.dist
@pytest.mark.parametrize(
    ("name", "form", "layout"),
    [
        ("qwen3_5", "as saved", "tp2"),
        ("qwen3_5_moe", "as saved", "ep2"),
        ("qwen3_5_moe", "of the modules", "one rank"),
        ("qwen3_5_moe", "of the modules", "ep2"),
    ],
)
def test_layers_of_prediction_that_are_not_trained_come_back(name, form, layout, model_root, tmp_path):
    """Experts of Qwen3.5 are published in stacks, transformers saves them one by one; an export is like the source."""
    source = tiny_model.make(name, model_root, dtype="bfloat16")
    if form == "of the modules":
        source = of_the_modules(source, tmp_path / "stacked")
    source = with_prediction(source, tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    assert list(weight_files.problems(source, config, read(config))) == []
    ranks, settings = LAYOUTS[layout]
    gloo_ranks(ranks).run(conversion.convert, source, tmp_path / "out", settings)
    assert_same_tensors(source, tmp_path / "out")


@pytest.mark.dist
def test_transformers_reads_the_same_model_from_an_export_of_the_published_form(model_root, tmp_path):
    plain = tiny_model.make("qwen3_vl_moe", model_root)
    gloo_ranks(2).run(
        conversion.convert,
        published(plain, tmp_path / "published"),
        tmp_path / "out",
        {"expert_model_parallel_size": 2},
    )
    one, other = (
        AutoModelForImageTextToText.from_pretrained(each, dtype=torch.float32).state_dict()
        for each in (plain, tmp_path / "out")
    )
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("form", ["published", "of the modules"])
def test_the_check_before_a_run_knows_both_forms(form, model_root, tmp_path):
    source = tiny_model.make("qwen3_vl_moe", model_root, dtype="bfloat16")
    if form == "published":
        source = published(source, tmp_path / "published")
    config = json.loads((source / "config.json").read_text())
    assert list(weight_files.problems(source, config, read(config))) == []


def test_an_expert_that_is_missing_from_a_stack_is_named_before_a_run(model_root, tmp_path):
    source = published(tiny_model.make("qwen3_vl_moe", model_root), tmp_path / "short")
    stored = load_file(source / "model.safetensors")
    name = "model.language_model.layers.1.mlp.experts.down_proj"
    save_file({**stored, name: stored[name][:3].clone()}, source / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    assert list(weight_files.problems(source, config, read(config))) == [
        "1 tensors that the model needs are missing: model.layers.1.mlp.experts.3.down_proj.weight"
    ]


@pytest.mark.dist
@pytest.mark.parametrize(
    "targets",
    [
        "all-linear",
        pytest.param("linear_fc1", marks=pytest.mark.slow),
        pytest.param("linear_fc2", marks=pytest.mark.slow),
    ],
)
def test_an_adapter_of_stacked_experts_is_read_as_it_was_written(targets, model_root, tmp_path):
    directory = tiny_model.make("qwen3_vl_moe", model_root)
    given = {"target_modules": [targets], "lora_dropout": 0.1}
    gloo_ranks(1).run(lora_ranks.make_adapter, str(directory), str(tmp_path / "adapter"), **given)
    gloo_ranks(1).run(
        lora_ranks.write_again, str(directory), str(tmp_path / "adapter"), str(tmp_path / "again"), **given
    )
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "again"))
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    base = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    theirs = {name.replace(".default", ""): value for name, value in loaded.named_parameters() if ".lora_" in name}
    assert theirs.keys() == one.keys()
    assert [name for name in one if not torch.equal(one[name], theirs[name])] == []


@pytest.mark.dist
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"target_regex": r".*local_experts\.[01]\.linear_fc2"},
            "and of model.layers.*.mlp.experts.down_proj only some are adapted",
        ),
        ({"modules_to_save": ["linear_fc2"], "target_modules": ["linear_qkv"]}, "peft cannot keep model.layers.*.mlp"),
    ],
    ids=["some experts", "experts in full"],
)
def test_what_peft_cannot_hold_of_a_stack_is_refused_before_training(given, said, model_root):
    directory = tiny_model.make("qwen3_vl_moe", model_root)
    (refusal,) = gloo_ranks(1).run(lora_ranks.refusal_of_its_form, str(directory), **given)
    assert said in refusal
    assert "merge_lora: true" in refusal
    assert gloo_ranks(1).run(lora_ranks.refusal_of_its_form, str(directory), **given, merge_lora=True) == [""]


@pytest.mark.dist
def test_adapters_of_some_experts_are_written_beside_a_merged_model(model_root, tmp_path):
    directory = str(tiny_model.make("qwen3_vl_moe", model_root))
    given = {"target_regex": r".*local_experts\.[01]\.linear_fc2", "merge_lora": True}
    gloo_ranks(1).run(lora_ranks.make_adapter, directory, str(tmp_path / "one"), **given)
    gloo_ranks(1).run(lora_ranks.write_again, directory, str(tmp_path / "one"), str(tmp_path / "other"), **given)
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "other"))
    assert {name.split(".experts.")[1] for name in one} == {
        f"{expert}.down_proj.lora_{half}.weight" for expert in (0, 1) for half in "AB"
    }
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize(
    ("width", "exchanged"),
    [
        (48, {"gate_up_proj": True, "down_proj": True}),
        (32, {"gate_up_proj": False, "down_proj": True}),
        (64, {"gate_up_proj": True, "down_proj": False}),
    ],
)
def test_a_model_without_files_is_stacked_in_a_form_that_transformers_recognizes(
    width, exchanged, model_root, tmp_path
):
    source = tiny_model.make("qwen3_vl_moe", model_root)
    config = json.loads((source / "config.json").read_text())
    config["text_config"]["moe_intermediate_size"] = width
    assert config["text_config"]["hidden_size"] == 64
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = read_model(str(tmp_path), TrainArgs())
    assert stacking.stacking_of(spec).is_exchanged == exchanged


@pytest.mark.parametrize("shape", [(10**9, 0, 64), (10**9, 64, 32), (0, 0, 0)])
def test_a_stack_of_impossible_size_is_not_taken_apart(shape):
    assert stacks.slabs("model.layers.0.mlp.experts.gate_up_proj", shape, 64, stacks.StackForm()) == {}


@pytest.mark.parametrize(
    ("shape", "rank"),
    [((10**9, 0), 4), ((8,), 4), ((8, 64), "four"), ((8, 64), -1), ((8, 64), None)],
)
def test_an_adapter_that_is_none_of_stacked_experts_has_no_parts(shape, rank):
    key = "base_model.model.model.layers.0.mlp.experts.lora_A.weight"
    config = {"r": rank, "target_parameters": ["mlp.experts.down_proj"]}
    assert stacked_adapter.parts({key: shape}, config, stacks.StackForm()) == {}


class _Counted:
    """A file that remembers which whole tensors were read."""

    def __init__(self, file):
        self.file, self.read = file, []

    def get_tensor(self, key):
        self.read.append(key)
        return self.file.get_tensor(key)


def test_each_stack_of_an_adapter_is_read_once(tmp_path):
    """Reading it for every expert again would take experts x stacks reads of whole tensors."""
    experts, rank = 8, 2
    owner = "base_model.model.model.language_model.layers.{}.mlp.experts"
    stored = {}
    for layer in range(2):
        for inner, inputs, outputs in ((".base_layer", 6, 10), ("", 5, 6)):
            name = f"{owner.format(layer)}{inner}"
            stored[f"{name}.lora_A.weight"] = torch.randn(experts * rank, inputs)
            stored[f"{name}.lora_B.weight"] = torch.randn(outputs, rank * experts)
    save_file(stored, tmp_path / "adapter_model.safetensors")
    named = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": rank, "target_parameters": named}))
    source = adapter_source.open_adapter(tmp_path)
    counted = _Counted(source.file.file)
    keys = sorted(source.keys)
    assert len(keys) == 2 * experts * 3 * 2, "A and B of gate, up and down of each expert"
    source = dataclasses.replace(source, file=dataclasses.replace(source.file, file=counted))
    for layer in ("0", "1"):
        for expert in range(experts):
            for key in (key for key in keys if f".layers.{layer}." in key and f".experts.{expert}." in key):
                source.tensors([key])[0][:]
    assert sorted(counted.read) == sorted(stored)
