"""FP8 exports: scales and values by their definition, and the same model to transformers and to our importer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, FineGrainedFP8Config

from megatron_trainer.convert.dequantize import Dequantized
from megatron_trainer.convert.quantize import quantize
from tests.effects.registry import effect
from tests.support.models import layouts, tiny_model
from tests.support.ranks import conversion
from tests.support.ranks.exporting import export
from tests.support.ranks.pool import gloo_ranks

WIDE = {"hidden_size": 256, "intermediate_size": 384, "head_dim": 64, "num_hidden_layers": 2}


def by_definition(weight: torch.Tensor) -> torch.Tensor:
    """Quantized and read again, block by block."""
    found = torch.empty(weight.shape)
    for row in range(0, weight.shape[0], 128):
        for column in range(0, weight.shape[1], 128):
            block = weight[row : row + 128, column : column + 128].float()
            scale = block.abs().max() / 448 if block.any() else torch.tensor(1.0)
            stored = (block / scale).to(torch.float8_e4m3fn)
            found[row : row + 128, column : column + 128] = stored.float() * scale
    return found


@pytest.mark.parametrize("shape", [(256, 384), (257, 384), (16, 8)])
def test_values_and_scales_follow_their_definition(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 10
    weight[:128, :128] = 0.0
    scales, stored = quantize(weight.bfloat16())
    assert stored.dtype == torch.float8_e4m3fn
    assert scales.shape == (-(-shape[0] // 128), -(-shape[1] // 128))
    read = Dequantized(weight=stored, scales=scales, block=(128, 128))[:]
    assert torch.equal(read, by_definition(weight.bfloat16()))
    assert scales[0, 0] == 1.0


def check(source: Path, folder: Path, target: Path, dtype: str) -> None:
    """The FP8 folder is the source quantized and read again: by its tensors, to transformers, and to our importer."""
    original, stored = load_file(source / "model.safetensors"), load_file(folder / "model.safetensors")
    quantized = {name for name in original if name + "_scale_inv" in stored}
    assert any(name.endswith("o_proj.weight") for name in quantized)
    assert not [name for name in quantized if any(part in name for part in ("norm", "embed", "lm_head", "mlp.gate."))]
    assert stored.keys() == {*original, *(f"{name}_scale_inv" for name in quantized)}
    assert all(torch.equal(stored[name], original[name]) for name in original.keys() - quantized)
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["weight_block_size"] == [128, 128]
    assert "lm_head" in config["modules_to_not_convert"]
    gloo_ranks(1).run(conversion.convert, folder, target, {"torch_dtype": dtype})
    ours, kind = load_file(target / "model.safetensors"), getattr(torch, dtype)
    expected = {name: by_definition(t).to(kind) if name in quantized else t for name, t in original.items()}
    assert ours.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(ours[name], expected[name])] == []
    theirs = AutoModelForCausalLM.from_pretrained(
        folder, dtype=kind, quantization_config=FineGrainedFP8Config(dequantize=True)
    ).state_dict()
    full = AutoModelForCausalLM.from_pretrained(target, dtype=kind).state_dict()
    assert [name for name in full if not torch.equal(theirs[name], full[name])] == []


@effect("quant_method", "quant_bits")
@pytest.mark.dist
def test_an_export_is_read_as_it_was_quantized(model_root: Path, tmp_path: Path):
    source = tiny_model.make("llama", model_root, dtype="bfloat16", **WIDE)
    done = export(to_hf=True, model=source, quant_method="fp8", quant_bits=8, output_dir=tmp_path / "fp8")
    assert done.exit_code == 0, done.message
    check(source, tmp_path / "fp8", tmp_path / "full", "bfloat16")


@pytest.mark.dist
@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("deepseek_v3", "tp1"),
        pytest.param("qwen3", "tp2", marks=pytest.mark.slow),
        pytest.param("qwen3_moe", "pp2", marks=pytest.mark.slow),
    ],
)
def test_every_layout_writes_the_same(name: str, layout: str, model_root: Path, tmp_path: Path):
    source = tiny_model.make(name, model_root)
    settings = layouts.read(layout)["arguments"]
    gloo_ranks(layouts.num_ranks(settings)).run(conversion.convert, source, tmp_path / "fp8", settings, in_fp8=True)
    folder = tmp_path / "fp8"
    if not (folder / "model.safetensors").exists():
        parts = {n: t for path in sorted(folder.glob("*.safetensors")) for n, t in load_file(path).items()}
        for path in (*folder.glob("*.safetensors"), *folder.glob("*.index.json")):
            path.unlink()
        save_file(parts, folder / "model.safetensors", metadata={"format": "pt"})
    check(source, folder, tmp_path / "full", "float32")
