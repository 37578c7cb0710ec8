"""Experts whose products TransformerEngine starts all at once on Hopper, beside those that cuBLAS computes one by one.

Both in bfloat16, whose rounding moves logits and gradients as in test_gpu_parity.py: the one has to be as near to the
float32 truth of transformers as the other. Widths are multiples of 128; for others the products are left to cuBLAS.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.models import tiny_model
from tests.support.ranks import parity

pytestmark = pytest.mark.gpu

VARIABLE = "NVTE_USE_CUTLASS_GROUPED_GEMM"
ALL_AT_ONCE = "GroupProblemShape"
"""In the name of the kernel."""
BF16 = {"torch_dtype": "bfloat16", "moe_grouped_gemm": True}


@pytest.fixture
def experts(model_root: Path) -> Path:
    import torch

    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the kernel is for Hopper")
    return tiny_model.make("qwen3_moe", model_root, dtype="bfloat16", hidden_size=128, moe_intermediate_size=128)


def test_on_hopper_the_kernel_is_the_default_unless_the_variable_says_otherwise(experts, gpu, monkeypatch):
    import os

    monkeypatch.delenv(VARIABLE)
    gpu.bind(0)
    assert os.environ[VARIABLE] == "1"
    monkeypatch.setenv(VARIABLE, "0")
    gpu.bind(0)
    assert os.environ[VARIABLE] == "0"


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_logits_and_gradients_are_as_near_to_transformers(experts, packed, monkeypatch, record_property):
    parity.make_reference(experts, packed=packed)
    found = {}
    for value in ("0", "1"):
        monkeypatch.setenv(VARIABLE, value)
        found[value] = parity.compare(experts, BF16, packed=packed)
        for name in ("logits", "gradients", "worst"):
            record_property(f"{name} {value}", getattr(found[value], name))
    one_by_one, at_once = found["0"], found["1"]
    assert at_once.changed == at_once.no_gradient == ()
    assert at_once.logits <= 1.25 * one_by_one.logits
    assert at_once.gradients <= 1.25 * one_by_one.gradients, at_once.worst


@pytest.mark.parametrize("tuner", [{}, {"train_type": "lora", "lora_dropout": 0.0}], ids=["full", "lora"])
def test_a_run_has_the_losses_that_it_has_one_by_one(train, experts, tuner, monkeypatch):
    given: dict[str, Any] = {**BF16, **tuner, "recompute_granularity": "none"}
    runs = []
    train(**given, model=experts)  # the first run of a compiled kernel also tries its variants
    for value in ("0", "1"):
        monkeypatch.setenv(VARIABLE, value)
        runs.append(train(**given, model=experts, count_kernels=True))
    one_by_one, at_once = runs
    launches = [sum(count for name, count in run.kernels.items() if ALL_AT_ONCE in name) for run in runs]
    assert launches[0] == 0 < launches[1]
    assert at_once.losses == pytest.approx(one_by_one.losses, abs=5e-3)
