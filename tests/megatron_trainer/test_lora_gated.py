"""The sum of an adapter in SwiGLU's kernel, by Triton's interpreter: against float32, and against a kernel each."""

from __future__ import annotations

import pytest

from tests.support.interpreted import lines_of

pytest.importorskip("triton")

TOLERANCE = 1e-3
"""Of numbers in float16, summed in float32."""


@pytest.fixture(scope="module")
def lines() -> list[dict]:
    return lines_of("tests.support.models.gated_products")


def test_output_and_gradients_equal_the_same_in_float32(lines):
    for line in lines[:3]:
        assert max(line["errors"].values()) <= TOLERANCE, line


def test_they_are_those_of_separate_kernels_to_the_bit(lines):
    """Except sums over tokens or width: low's gradient is summed in another order before it is rounded, and that of b
    by torch's product, whose order on CPUs depends on where its operands lie in memory."""
    for line in lines[:3]:
        assert {name: line["bits"][name] for name in ("output", "y")} == {"output": 0, "y": 0}, line


def test_a_block_gives_what_it_gives_without_the_fusion(lines):
    """Plain, with dropout and recomputation, and with its adapter turned off."""
    assert len(lines[3:]) == 3
    for line in lines[3:]:
        assert max(line["block"].values()) <= TOLERANCE, line


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({}, True),
        ({"add_bias_linear": True}, False),
        ({"bias_activation_fusion": False}, False),
        ({"use_te_activation_func": True}, False),
        ({"activation_func_fp8_input_store": True}, False),
        ({"cpu_offloading": True}, False),
        ({"gated_linear_unit": False}, False),
        ({"activation_func": "gelu"}, False),
    ],
)
def test_only_swiglu_without_bias_is_fused(change, fits):
    from tests.support.models import gated_products

    assert gated_products.is_fused(**change) is fits


def test_shared_experts_keep_their_own_forward_pass():
    from megatron.core.transformer.moe.shared_experts import SharedExpertMLP

    from tests.support.models import gated_products

    assert not gated_products.is_fused(of=SharedExpertMLP)
