"""A model that went through the GPU comes out of an export as it went in, and transformers loads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.models import tiny_model

pytestmark = pytest.mark.gpu

CASES = {
    "dense": ("llama", {}),
    "tied": ("qwen2_odd", {}),
    "grouped-experts": ("qwen3_moe", {"moe_grouped_gemm": True}),
    "latent-attention": ("deepseek_v3", {}),
}


@pytest.mark.parametrize(("name", "given"), CASES.values(), ids=CASES.keys())
def test_an_export_from_transformer_engine_is_the_same_bits(name, given, model_root: Path, tmp_path: Path):
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from tests.support.ranks import conversion

    directory = tiny_model.make(name, model_root, dtype="bfloat16")
    conversion.convert(directory, tmp_path / "out", {"torch_dtype": "bfloat16", **given})
    before, after = (load_file(folder / "model.safetensors") for folder in (directory, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key].float(), after[key].float()) for key in before)
    wide = {key for key in before if before[key].dtype != after[key].dtype}
    assert all(key.endswith("e_score_correction_bias") for key in wide), "it moves by less than bfloat16 can tell"
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
