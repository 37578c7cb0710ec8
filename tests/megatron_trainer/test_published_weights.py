"""Weights as they are published: read exactly as transformers reads them, slice by slice, or refused with a reason."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, FineGrainedFP8Config
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from megatron_trainer.convert.dequantize import Dequantized
from megatron_trainjob import quantization
from tests.support.matrix import mostly_slow
from tests.support.models import published_weights as published
from tests.support.models import tiny_model
from tests.support.ranks import conversion
from tests.support.ranks.pool import gloo_ranks

BLOCKS = partial(published.by_blocks, block=16)
STORED = {
    "blocks": ("llama", {}, 1, published.fine_grained(16), BLOCKS),
    "blocks over tensor-parallel ranks": (
        "qwen3",
        {"tensor_model_parallel_size": 2},
        2,
        published.fine_grained(16),
        BLOCKS,
    ),
    "blocks of experts and latent attention": ("deepseek_v3", {}, 1, published.fine_grained(16), BLOCKS),
    "experts over ranks": (
        "qwen3_moe",
        {"expert_model_parallel_size": 2},
        2,
        published.fine_grained(16),
        BLOCKS,
    ),
    "fused gate and up": ("glm4", {}, 1, published.fine_grained(32), partial(published.by_blocks, block=32)),
    "by channel": ("llama", {}, 1, published.compressed("channel"), published.by_channel),
    "by channel, experts": ("qwen3_moe", {}, 1, published.compressed("channel"), published.by_channel),
    "by tensor": ("qwen2", {"pipeline_model_parallel_size": 2}, 2, published.compressed("tensor"), published.by_tensor),
}


def theirs(folder: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What transformers dequantizes the folder to."""
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    kind = FineGrainedFP8Config if config["quant_method"] == "fp8" else CompressedTensorsConfig
    if kind is CompressedTensorsConfig:
        pytest.importorskip("compressed_tensors")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=kind(dequantize=True))
    return model.state_dict()


def loaded(folder: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What transformers makes of a folder in full."""
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).state_dict()


@pytest.mark.dist
@pytest.mark.parametrize(
    ("case", "dtype"),
    mostly_slow(
        [(case, dtype) for case in STORED for dtype in ("float32", "bfloat16")],
        [(case, "bfloat16") for case in STORED if case not in ("blocks", "by channel, experts")],
    ),
)
def test_fp8_weights_are_exactly_what_transformers_dequantizes_them_to(case, dtype, model_root, tmp_path):
    name, layout, ranks, config, quantize = STORED[case]
    source = tiny_model.make(name, model_root, dtype=dtype)
    folder = published.quantized(source, tmp_path / "fp8", config, quantize)
    gloo_ranks(ranks).run(conversion.convert, folder, tmp_path / "full", {**layout, "torch_dtype": dtype})
    expected, found = theirs(folder, getattr(torch, dtype)), loaded(tmp_path / "full", getattr(torch, dtype))
    assert found.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []
    original = loaded(source, torch.float32)
    assert any(not torch.equal(original[key].to(expected[key].dtype), expected[key]) for key in expected)


@pytest.mark.dist
@pytest.mark.parametrize(
    "given",
    [pytest.param({}, marks=pytest.mark.slow), {"shards": 3}, {"legacy": True}],
    ids=["one file", "shards", "before torch 1.6"],
)
def test_files_of_torch_are_read_like_safetensors(given, llama, tmp_path):
    folder = published.pickled(llama, tmp_path / "bin", **given)
    gloo_ranks(1).run(conversion.convert, folder, tmp_path / "full", {})
    expected, found = load_file(llama / "model.safetensors"), load_file(tmp_path / "full" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.dist
def test_a_file_that_could_run_code_is_not_loaded(llama, tmp_path):
    folder = published.pickled(llama, tmp_path / "bin")
    torch.save({"model": Path("x"), "code": print}, folder / "pytorch_model.bin")
    (message,) = gloo_ranks(1).run(conversion.refusal, folder, {})[0]
    assert "could run code" in message
    assert "safetensors" in message


@pytest.mark.dist
def test_of_two_sources_the_one_that_transformers_reads_is_read_and_said(llama, tmp_path):
    """The single file wins over the index, and safetensors over torch's files."""
    folder = published.pickled(llama, tmp_path / "two")
    tensors = load_file(llama / "model.safetensors")
    save_file({key: tensor + 1 for key, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    shutil.copy(llama / "model.safetensors", folder / "part.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "part.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (warning,) = gloo_ranks(1).run(conversion.warnings_of_loading, folder, tmp_path / "full")[0]
    assert (
        "reading model.safetensors, as transformers does, and not model.safetensors.index.json, pytorch_model.bin"
        in (warning)
    )
    expected, found = loaded(folder, torch.float32), loaded(tmp_path / "full", torch.float32)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.dist
@pytest.mark.parametrize("rows", [-8, 8], ids=["fewer", "more"])
def test_another_number_of_embedding_rows_than_the_vocabulary_is_refused(rows, llama, tmp_path):
    """transformers refuses it too; rows were cut off or made up."""
    shutil.copytree(llama, tmp_path / "model")
    config = json.loads((llama / "config.json").read_text())
    size = config["vocab_size"]
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "vocab_size": size - rows}))
    (message,) = gloo_ranks(1).run(conversion.refusal, tmp_path / "model", {})[0]
    assert f"model.embed_tokens.weight has {size} rows, vocab_size says {size - rows}" in message
    assert f"lm_head.weight has {size} rows" in message


@pytest.mark.dist
def test_fp8_without_its_scales_and_a_wrong_index_are_refused(llama, tmp_path):
    folder = published.quantized(llama, tmp_path / "fp8", published.fine_grained(16), BLOCKS)
    tensors = load_file(folder / "model.safetensors")
    lost = "model.layers.1.mlp.down_proj.weight"
    del tensors[f"{lost}_scale_inv"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (message,) = gloo_ranks(1).run(conversion.refusal, folder, {})[0]
    assert f"{lost} is stored in FP8 without {lost}_scale_inv" in message


def test_a_grid_that_can_be_read_in_two_ways_is_refused():
    """192 rows and 2 scales: blocks of 128 by config.json, of 96 by transformers' division."""
    weight, scales = published.by_blocks(torch.randn(192, 128), 128)
    two_ways = Dequantized(weight=weight, scales=scales, block=(128, 128))
    with pytest.raises(ValueError, match="blocks of 128 by config.json and of 96"):
        two_ways[:]


def test_scales_stored_as_bytes_are_exponents_of_two():
    """As transformers reads them: 127 stands for 1."""
    weight = torch.randn(64, 64).to(torch.float8_e4m3fn)
    exponents = torch.tensor([[120, 127], [130, 128]], dtype=torch.uint8)
    theirs = Fp8Dequantize(None)._dequantize_one(weight, exponents, torch.float32)
    assert torch.equal(Dequantized(weight=weight, scales=exponents, block=(32, 32))[:], theirs)


@pytest.mark.parametrize(("rows", "columns"), [(100, 100), (192, 64), (128, 300), (640, 384), (130, 7)])
def test_odd_shapes_are_dequantized_as_transformers_does_or_refused_as_it_refuses(rows, columns):
    """Blocks of 128; transformers divides evenly, and refuses what does not divide, which we read by config.json."""
    weight, scales = published.by_blocks(torch.randn(rows, columns), 128)
    ours = Dequantized(weight=weight, scales=scales, block=(128, 128))
    truth = (scales.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]) * weight.float()
    try:
        theirs = Fp8Dequantize(None)._dequantize_one(weight, scales, torch.float32)
    except ValueError:
        assert torch.equal(ours[:], truth)
        return
    if torch.equal(theirs, truth):
        assert torch.equal(ours[:], theirs)
    else:
        with pytest.raises(ValueError, match=r"by config\.json and of .* divided evenly"):
            ours[:]


def test_a_last_block_may_be_short():
    """576 rows of DeepSeek's compressed keys: 5 blocks of 128, the last of 64, which divide in no other way."""
    weight, scales = published.by_blocks(torch.randn(576, 256), 128)
    source = Dequantized(weight=weight, scales=scales, block=(128, 128))
    whole = weight.float() * scales.repeat_interleave(128, 0)[:576].repeat_interleave(128, 1)
    assert torch.equal(source[:], whole)
    assert torch.equal(source[100:530], whole[100:530])
    assert torch.equal(source[:, 70:200], whole[:, 70:200])
    assert source[:0].shape == (0, 256)


UNREADABLE = {
    "bits": ({"quant_method": "gptq", "bits": 4}, "'gptq' are not supported"),
    "four bits": (published.compressed("group", num_bits=4, type="int"), "4 bits of type 'int'"),
    "eight integer bits": (published.compressed("channel", type="int"), "8 bits of type 'int'"),
    "packed": (published.compressed("channel") | {"format": "pack-quantized"}, "format is 'pack-quantized'"),
    "frozen": (published.compressed("channel") | {"quantization_status": "frozen"}, "is 'frozen'"),
    "nothing": ({"bits": 4}, "None are not supported"),
}


@pytest.mark.parametrize(("config", "message"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_other_ways_to_store_weights_are_refused_with_what_is_read(config, message):
    problem = quantization.problem({"quantization_config": config})
    assert problem is not None
    assert message in problem
    assert "read is FP8 with block, channel or tensor scales" in problem
