"""gpt-oss as published: experts in one tensor, gate and up in turn, in full or in MXFP4; and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from megatron_trainer.convert.dequantize import DequantizedBlocks
from megatron_trainer.models import settings
from megatron_trainjob import weight_files
from megatron_trainjob.args.model import check
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.families import read
from megatron_trainjob.memory import activation
from tests.support.matrix import mostly_slow
from tests.support.models import tiny_model
from tests.support.models.published_weights import pickled
from tests.support.ranks import conversion
from tests.support.ranks.pool import gloo_ranks

MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one rank": (1, {}),
    "ep2": (2, {"expert_model_parallel_size": 2}),
    "tp2": (2, {"tensor_model_parallel_size": 2, "sequence_parallel": True, "expert_tensor_parallel_size": 1}),
    "pp2": (2, {"pipeline_model_parallel_size": 2}),
}


def blocks(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random bytes of numbers in four bits [.., columns / 32, 16], and exponents near that of one."""
    drawn = torch.Generator().manual_seed(sum(shape))
    *rows, columns = shape
    numbers = torch.randint(0, 256, (*rows, columns // 32, 16), generator=drawn, dtype=torch.uint8)
    return numbers, torch.randint(118, 126, (*rows, columns // 32), generator=drawn, dtype=torch.uint8)


def published(source: Path, folder: Path) -> Path:
    """The model with the experts' matrices in MXFP4, as its publisher stores them."""
    shutil.copytree(source, folder)
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if name.endswith((".gate_up_proj", ".down_proj")):
            experts, columns, rows = tensor.shape
            tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = blocks(experts, rows, columns)
        else:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": MXFP4}))
    return folder


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_are_dequantized_as_transformers_does_slice_by_slice(dtype):
    numbers, scales = blocks(3, 10, 64)
    whole = convert_moe_packed_tensors(numbers, scales, dtype=dtype).transpose(1, 2)
    ours = DequantizedBlocks(blocks=numbers, scales=scales)
    assert ours.shape == whole.shape == (3, 10, 64)
    assert torch.equal(ours[:].to(dtype), whole)
    assert torch.equal(ours[1:2, 3:7, 20:50].to(dtype), whole[1:2, 3:7, 20:50])
    assert torch.equal(ours[0:2, 9:10].to(dtype), whole[0:2, 9:10])


@pytest.mark.dist
@pytest.mark.parametrize("layout", mostly_slow(LAYOUTS, ["pp2"]))
def test_an_export_has_the_tensors_of_the_source_bit_by_bit(layout, model_root, tmp_path):
    source = tiny_model.make("gpt_oss", model_root, dtype="bfloat16")
    ranks, settings = LAYOUTS[layout]
    gloo_ranks(ranks).run(conversion.convert, source, tmp_path / "out", settings)
    before, after = stored(source), stored(tmp_path / "out")
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


@pytest.mark.dist
@pytest.mark.parametrize("layout", mostly_slow(LAYOUTS, ["ep2"]))
def test_experts_in_four_bits_become_what_transformers_makes_of_them(layout, model_root, tmp_path):
    folder = published(tiny_model.make("gpt_oss", model_root, dtype="bfloat16"), tmp_path / "mxfp4")
    ranks, settings = LAYOUTS[layout]
    gloo_ranks(ranks).run(conversion.convert, folder, tmp_path / "out", settings)
    before, after = stored(folder), stored(tmp_path / "out")
    for name in [name for name in before if name.endswith("_blocks")]:
        numbers, scales = before.pop(name), before.pop(name.replace("_blocks", "_scales"))
        before[name.removesuffix("_blocks")] = convert_moe_packed_tensors(numbers, scales)
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def test_a_file_in_four_bits_that_names_no_type_is_trained_in_bfloat16(model_root, tmp_path):
    folder = published(tiny_model.make("gpt_oss", model_root), tmp_path / "mxfp4")
    config = json.loads((folder / "config.json").read_text())
    bare = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}
    found = check.check(bare, TrainArgs(model=str(folder)))
    assert found.violations == ()
    assert found.config["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "llama4_text"])
def test_four_bits_of_another_family_are_refused(name):
    raw = {**tiny_model.raw_config(name), "quantization_config": MXFP4}
    (violation,) = check.check(raw, TrainArgs(model="m")).violations
    assert violation.path == "config.json:quantization_config"
    assert "read for gpt_oss only" in violation.message


def test_the_check_before_a_run_knows_experts_in_full_and_in_four_bits(model_root, tmp_path):
    source = tiny_model.make("gpt_oss", model_root, dtype="bfloat16")
    for folder in (source, published(source, tmp_path / "mxfp4")):
        config = json.loads((folder / "config.json").read_text())
        assert list(weight_files.problems(folder, config, read(config))) == []


@pytest.mark.parametrize("shards", [1, 3])
def test_the_check_before_a_run_knows_experts_in_torch_files(shards, model_root, tmp_path):
    folder = pickled(tiny_model.make("gpt_oss", model_root), tmp_path / "bin", shards=shards)
    config = json.loads((folder / "config.json").read_text())
    assert list(weight_files.problems(folder, config, read(config))) == []


@pytest.mark.dist
def test_blocks_without_scales_are_refused_before_and_while_loading(model_root, tmp_path):
    folder = published(tiny_model.make("gpt_oss", model_root, dtype="bfloat16"), tmp_path / "mxfp4")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.experts.down_proj_scales"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (problem,) = weight_files.problems(folder, config, read(config))
    assert "model.layers.1.mlp.experts.down_proj_scales is missing" in problem
    ((message,),) = gloo_ranks(1).run(conversion.refusal, folder, {})
    assert "model.layers.1.mlp.experts.down_proj_scales is missing" in message


@pytest.mark.parametrize(
    ("given", "path", "said"),
    [
        ({"context_parallel_size": 2}, "context_parallel_size", "no attention sinks"),
        (
            {"tensor_model_parallel_size": 2, "sequence_parallel": True},
            "expert_tensor_parallel_size",
            "experts with biases are not split",
        ),
        ({"train_type": "lora", "lora_bias": "all"}, "lora_bias", "peft keeps no biases of experts"),
        ({"quant_method": "fp8", "to_hf": True}, "quant_method", "are not written in FP8"),
    ],
)
def test_what_would_be_lost_or_counted_twice_is_refused(given, path, said):
    (violation,) = check.check(tiny_model.raw_config("gpt_oss"), TrainArgs(model="m", **given)).violations
    assert violation.path == f"spec.args.{path}"
    assert said in violation.message


def test_the_plan_counts_what_the_clamped_gate_stores():
    """As megatron-core's experts compute it where nothing is fused: the tensors kept for the backward pass."""
    gate = settings._gate(read(tiny_model.raw_config("gpt_oss")))
    width, limit = 24, gate["activation_func_clamp_value"]
    row = torch.randn(1, 2 * width, requires_grad=True) * 1.0
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        gates, values = row.chunk(2, dim=-1)
        gates, values = gates.clamp(max=limit), values.clamp(min=-limit, max=limit)
        product = gate["activation_func"](gates) * (values + gate["glu_linear_offset"])
        probabilities = torch.rand(1, 1, requires_grad=True)
        torch.nn.functional.linear(product * probabilities, torch.randn(8, width, requires_grad=True))
    sizes = [tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in kept.values()]
    assert sum(size for size in sizes if size in (width, 2 * width)) == (2 + activation.CLAMPED_GATE + 1) * width
