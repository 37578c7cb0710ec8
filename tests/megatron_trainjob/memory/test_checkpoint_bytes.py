"""Bytes that checkpoints in memory take on the node that needs most, by hand."""

import pytest

from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.families import read
from megatron_trainjob.memory import estimate
from megatron_trainjob.memory.checkpoint import HostMemory, Place, of_nodes
from tests.megatron_trainjob.memory.test_estimate import TINY

FIRST, OTHER = Place(stage=0, is_first_copy=True), Place(stage=0, is_first_copy=False)
PARAMETERS = 2536
"""See test_estimate.py."""


def needed(nodes, **arguments):
    args = TrainArgs(**{"max_length": 16, "global_batch_size": 8, **arguments})
    ranks = sum(map(len, nodes))
    return of_nodes(args, estimate(args, read(TINY), ranks), nodes, num_copies=ranks)


@pytest.mark.parametrize(
    ("nodes", "arguments", "volume", "staging"),
    [
        ([[FIRST]], {}, 2 * 14 * PARAMETERS, 14 * PARAMETERS),
        ([[FIRST, OTHER]], {}, 2 * 14 * PARAMETERS, 14 * PARAMETERS),
        ([[FIRST], [OTHER]], {}, 2 * (8 + 6) * PARAMETERS, 8 * PARAMETERS),
        ([[FIRST]], {"no_save_optim": True}, 2 * 2 * PARAMETERS, 2 * PARAMETERS),
        ([[FIRST]], {"optimizer": "lion"}, 2 * 10 * PARAMETERS, 10 * PARAMETERS),
    ],
)
def test_two_generations_of_weights_and_state_with_the_copies_of_the_node_before(nodes, arguments, volume, staging):
    """14 bytes a parameter: weights 2, main parameters 4, moments 8; the neighbor's part is not staged."""
    assert needed(nodes, **arguments) == HostMemory(volume=volume, staging=staging)
