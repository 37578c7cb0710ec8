"""Bytes of a checkpoint, and of what the nodes keep of it in memory. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.memory.activation import FLOAT32_BYTES
from megatron_trainjob.memory.estimate import MemoryEstimate, RankMemory

GENERATIONS = 2
MOMENTS = {"adam": 2, "sgd": 1, "lion": 1, "muon": 2, "dist_muon": 2}
"""Of each optimizer, at most."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a rank stands: its pipeline stage, and whether it is the first of those that hold the same weights."""

    stage: int
    is_first_copy: bool


@dataclass(frozen=True, kw_only=True)
class HostMemory:
    """Bytes on the node that needs most. volume: of the memory volume; staging: of the trainer's processes."""

    volume: int
    staging: int


def of_nodes(
    args: TrainArgs, estimate: MemoryEstimate, nodes: Sequence[Sequence[Place]], *, num_copies: int
) -> HostMemory:
    """What checkpoints in memory need: two generations of a node's files and of the copies of the node before it.

    nodes: the ranks of each node. num_copies: ranks that hold the same weights, the first of which writes them; each
    writes its share of float32 main parameters and moments. Experts count as the other parameters.
    """
    own = [sum(_rank_bytes(args, estimate.stages[place.stage], place, num_copies) for place in node) for node in nodes]
    held = [size + (own[index - 1] if len(own) > 1 else 0) for index, size in enumerate(own)]
    return HostMemory(volume=round(GENERATIONS * max(held)), staging=round(max(own)))


def _rank_bytes(args: TrainArgs, stage: RankMemory, place: Place, num_copies: int) -> float:
    element = stage.weights / max(stage.parameters, 1)
    saved = stage.trainable if args.train_type != "full" else stage.parameters
    weights = saved * element if place.is_first_copy else 0
    if args.no_save_optim:
        return weights
    return weights + stage.trainable * FLOAT32_BYTES * (1 + MOMENTS[args.optimizer]) / num_copies
