"""Adapters on TransformerEngine's layers: the logits and gradients of transformers with the adapter merged in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.models import tiny_model

pytestmark = pytest.mark.gpu

BOUND = 1e-4
BOUND_BF16 = 2e-2
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("llama", {}),
    "post-norms": ("glm4", {}),
    "sequential-experts": ("qwen3_moe", {}),
    "grouped-experts": ("qwen3_moe", {"moe_grouped_gemm": True}),
    "latent-attention": ("deepseek_v3", {}),
}


@pytest.mark.parametrize(("name", "given"), CASES.values(), ids=CASES.keys())
def test_adapters_equal_transformers_with_merged_weights(name, given, model_root: Path, tmp_path: Path):
    import torch
    from safetensors.torch import load_file

    from tests.support.models.lora_truth import with_transformers
    from tests.support.ranks import lora_ranks

    directory = tiny_model.make(name, model_root)
    lora_ranks.make_adapter(str(directory), str(tmp_path / "adapter"), **given)
    logits, gradients = with_transformers(directory, tmp_path / "adapter", tmp_path / "truth")
    found = lora_ranks.use_adapter(str(directory), str(tmp_path / "adapter"), str(tmp_path), **given)
    assert found["restored"]
    assert (found["logits"].cpu() - logits).abs().max().item() <= BOUND
    assert found["merged"] <= BOUND
    again, adapter = (load_file(tmp_path / part / "adapter_model.safetensors") for part in ("again", "adapter"))
    assert again.keys() == adapter.keys()
    assert all(torch.equal(again[key], adapter[key]) for key in adapter)
    ours = load_file(tmp_path / "gradients" / "adapter_model.safetensors")
    assert ours.keys() == gradients.keys()
    for key, expected in gradients.items():
        scale = max(expected.abs().max().item(), 1e-6)
        assert (ours[key] - expected).abs().max().item() <= BOUND * scale, key


def test_fused_products_equal_the_same_in_float32():
    import torch

    from tests.support.models import adapter_products

    for case in adapter_products.CASES:
        found = adapter_products.errors(case, "cuda", torch.bfloat16)
        assert max(found.values()) <= BOUND_BF16, (case, found)
    assert abs(adapter_products.kept_fraction(512, 4096, 0.05, "cuda") - 0.95) <= 0.001


def test_adapters_on_a_gpu_use_the_fused_products(train):
    """Each of the fused kernels is launched."""
    run = train(torch_dtype="bfloat16", train_type="lora", lora_dropout=0.1, count_kernels=True)
    for name in ("_pack", "_down", "_of_a", "_up"):
        assert any(kernel == name or kernel.startswith(f"{name}_") for kernel in run.kernels), sorted(run.kernels)


FEW = 1e-5
"""Share of elements that are rounded the other way, since the compiler may sum the products in another order."""


def test_sums_in_the_kernel_of_swiglu_equal_the_same_in_float32():
    import torch

    from tests.support.models import gated_products

    wide = gated_products.Case(tokens=8192, width=18944, rank=8)
    for case in (*gated_products.CASES, wide):
        found = gated_products.errors(case, "cuda", torch.bfloat16)
        assert max(found.values()) <= BOUND_BF16, (case, found)
        bits = gated_products.differing_bits(case, "cuda", torch.bfloat16)
        assert bits["output"] <= FEW * case.tokens * case.width, (case, bits)
        assert bits["y"] <= FEW * case.tokens * 2 * case.width, (case, bits)


@pytest.mark.parametrize(
    "given",
    [
        {"lora_dropout": 0.0, "recompute_granularity": "none"},
        {"lora_dropout": 0.1, "recompute_granularity": "none"},
        {"lora_dropout": 0.1, "recompute_granularity": "selective", "recompute_modules": ("mlp",)},
        {"lora_dropout": 0.1, "recompute_granularity": "none", "fp8_format": "hybrid"},
    ],
    ids=["plain", "dropout", "recomputed", "fp8"],
)
def test_adapters_add_in_the_kernel_of_swiglu(train, given, monkeypatch):
    """Losses and norms of gradients are those of a kernel each, over four steps."""
    from megatron_trainer.lora import gated

    settings = {"torch_dtype": "bfloat16", "train_type": "lora", **given}
    fused = train(**settings, count_kernels=True)
    monkeypatch.setattr(gated, "fits", lambda *_: False)
    separate = train(**settings, count_kernels=True)
    launched = [sum(n for name, n in run.kernels.items() if "add_swiglu" in name) for run in (fused, separate)]
    assert launched[0] > 0, sorted(fused.kernels)
    assert launched[1] == 0
    assert fused.losses == pytest.approx(separate.losses, abs=1e-3)
    norms = [run.run.column("grad_norm") for run in (fused, separate)]
    assert norms[0], fused.run.log[0].keys()
    assert norms[0] == pytest.approx(norms[1], rel=1e-2)


def test_the_gradient_of_swiglu_is_that_of_autograd():
    import torch

    from tests.support.models import swiglu_gradient

    for num_rows, width in (*swiglu_gradient.CASES, (70000, 18944)):
        assert swiglu_gradient.error(num_rows, width, "cuda", torch.bfloat16) <= 1e-2


def test_a_frozen_weight_has_no_transposed_gradient_in_eight_bits(train):
    """A linear with a norm in front of it; others have none already."""
    adapted = train(torch_dtype="bfloat16", train_type="lora", lora_dropout=0.0, fp8_format="hybrid")
    full = train(torch_dtype="bfloat16", fp8_format="hybrid")
    transposed = []
    for run in (adapted, full):
        gated = run.engine.models[0].decoder.layers[0].mlp.linear_fc1
        transposed.append(gated.quantizers["scaling_bwd"][0].columnwise_usage)
    assert transposed == [False, True]
