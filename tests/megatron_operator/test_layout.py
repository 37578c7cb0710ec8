"""layout: ranks and their coordinates as megatron-core numbers them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_operator.cli.plan import gpu_memory_bytes
from megatron_operator.core import rank_layout
from tests.support.operator.job_values import job


def laid_out(nodes, nproc, **args):
    """A job of this size whose arguments are set past all checks: only the arithmetic is tested here."""
    value = job({"numNodes": 1, "args": {"model": "/m", "dataset": ["/d"], "train_iters": 1}})
    return replace(value, num_nodes=nodes, nproc_per_node=nproc, args=replace(value.args, **args))


def column(rows, name):
    return [getattr(row, name) for row in rows]


def test_tensor_parallel_is_fastest_and_pipeline_slowest():
    rows = rank_layout.ranks(laid_out(2, 4, tensor_model_parallel_size=2, pipeline_model_parallel_size=2), None)
    assert column(rows, "tensor") == [0, 1, 0, 1, 0, 1, 0, 1]
    assert column(rows, "data") == [0, 0, 1, 1, 0, 0, 1, 1]
    assert column(rows, "pipeline") == [0, 0, 0, 0, 1, 1, 1, 1]
    assert column(rows, "node") == [0, 0, 0, 0, 1, 1, 1, 1]
    assert column(rows, "local_rank") == [0, 1, 2, 3, 0, 1, 2, 3]


def test_context_parallel_lies_between_tensor_and_data():
    rows = rank_layout.ranks(laid_out(1, 8, tensor_model_parallel_size=2, context_parallel_size=2), None)
    assert column(rows, "context") == [0, 0, 1, 1, 0, 0, 1, 1]
    assert column(rows, "data") == [0, 0, 0, 0, 1, 1, 1, 1]


def test_experts_have_a_grid_of_their_own_within_a_stage():
    value = laid_out(
        1,
        8,
        tensor_model_parallel_size=2,
        pipeline_model_parallel_size=2,
        expert_model_parallel_size=2,
        expert_tensor_parallel_size=1,
    )
    rows = rank_layout.ranks(value, None)
    assert column(rows, "expert") == [0, 1, 0, 1, 0, 1, 0, 1]
    assert column(rows, "expert_tensor") == [0] * 8
    assert rank_layout.sizes(value).expert_data == 2


def test_layers_are_dealt_out_over_the_stages():
    value = laid_out(1, 2, pipeline_model_parallel_size=2, decoder_first_pipeline_num_layers=3)
    assert rank_layout.layer_ranges(value, 10) == [((0, 3),), ((3, 10),)]
    assert column(rank_layout.ranks(value, 10), "layers") == [((0, 3),), ((3, 10),)]
    assert column(rank_layout.ranks(value, None), "layers") == [(), ()]


def test_virtual_stages_hold_every_other_chunk():
    value = laid_out(1, 2, pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2)
    assert rank_layout.layer_ranges(value, 8) == [((0, 2), (4, 6)), ((2, 4), (6, 8))]


def test_the_number_of_layers_comes_from_the_arguments_or_the_model():
    assert rank_layout.num_layers(laid_out(1, 1), {"model_type": "llama", "num_hidden_layers": 30}) == 30
    assert rank_layout.num_layers(laid_out(1, 1, num_layers=4), {"model_type": "llama", "num_hidden_layers": 30}) == 4
    assert rank_layout.num_layers(laid_out(1, 1), None) is None


@pytest.mark.parametrize(
    ("selector", "gib"),
    [
        ({"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}, 80),
        ({"nvidia.com/gpu.memory": "40960"}, 40),
        ({"gpu": "h100"}, None),
    ],
)
def test_the_memory_of_a_gpu_is_read_from_the_labels_that_nodes_are_selected_with(selector, gib):
    value = job({"podTemplate": {"spec": {"nodeSelector": selector}}})
    assert gpu_memory_bytes(value) == (None if gib is None else gib * 1024**3)
