"""The CPU backend: what stands in for a GPU, and the corrections of megatron-core."""

from __future__ import annotations

import pytest
import torch

from megatron_trainer.backend.cuda import peak_flops_of
from tests.support.ranks import parallel_cases
from tests.support.ranks.pool import gloo_ranks

pytestmark = pytest.mark.dist


def test_tensors_for_the_gpu_land_on_the_processor():
    (facts,) = gloo_ranks(1).run(parallel_cases.facts)
    assert (facts["name"], facts["collective"], facts["layers"], facts["device"]) == ("cpu", "gloo", "local", "cpu")
    assert facts["created_on"] == facts["moved_to"] == "cpu"
    assert facts["pinned"] == 0
    assert facts["is_available"] is False
    assert facts["peak_flops"] is None
    assert facts["device_name"]


def test_parameters_bear_the_type_name_that_the_optimizer_knows():
    (facts,) = gloo_ranks(1).run(parallel_cases.facts)
    assert facts["type"] == "torch.cuda.FloatTensor"


def test_peak_memory_grows_with_what_is_held():
    (facts,) = gloo_ranks(1).run(parallel_cases.facts)
    assert facts["grown"] >= 0.9 * facts["ballast"]


def test_every_random_state_can_be_put_back():
    assert gloo_ranks(1).run(parallel_cases.random_state_round_trip) == [True]


def test_parts_of_different_sizes_are_gathered():
    assert gloo_ranks(2).run(parallel_cases.uneven, "gather") == [[1, 2, 2, 2]] * 2


def test_parts_of_different_sizes_are_summed_and_scattered():
    assert gloo_ranks(2).run(parallel_cases.uneven, "scatter") == [[3], [3, 3, 3]]


def test_a_restored_optimizer_counts_steps_for_each_parameter():
    """megatron-core restores one counter for all: after a resume it would grow by four at each step, not by one."""
    ((steps, is_shared),) = gloo_ranks(1).run(parallel_cases.adam_steps_after_loading)
    assert steps == [3.0] * 4
    assert not is_shared


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("Other", None),
    ],
)
def test_peak_operations_come_from_the_data_sheet(name: str, flops: float | None):
    assert peak_flops_of(name, torch.bfloat16) == flops
