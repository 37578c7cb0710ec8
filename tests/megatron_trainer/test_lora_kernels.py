"""The fused products of adapters, by Triton's interpreter: what their kernels compute, without a GPU."""

from __future__ import annotations

import pytest

from tests.support.interpreted import lines_of

pytest.importorskip("triton")

TOLERANCE = 1e-3
"""Of numbers in float16, summed in float32."""


@pytest.fixture(scope="module")
def lines() -> list[dict]:
    return lines_of("tests.support.models.adapter_products")


def test_output_and_gradients_equal_the_same_in_float32(lines):
    for line in lines[:-1]:
        assert max(line["errors"].values()) <= TOLERANCE, line


def test_the_packed_mask_drops_the_fraction_that_was_asked_for(lines):
    """Of 256,000 bits: five standard deviations."""
    for dropout, kept in lines[-1]["kept"].items():
        expected = 1 - float(dropout)
        assert abs(kept - expected) <= 5 * (expected * float(dropout) / 256_000) ** 0.5


@pytest.mark.parametrize("dropout", [0.99999, 0.9999999])
def test_a_dropout_near_one_keeps_one_step(dropout):
    from megatron_trainer.lora import kernels

    assert kernels.kept_fraction(dropout) == 2**-16
