"""Checkpoints in memory: where they are kept, how often they are made, how much they may take."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from megatron_trainer.checkpoint.folder import Owner
from megatron_trainer.checkpoint.node_memory import NodeMemory, run_name
from megatron_trainer.checkpoint.nodes import Nodes, PeerFailure
from megatron_trainer.environment import Environment

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The memory of all nodes. limit_bytes: of each node, None for no limit."""

    place: NodeMemory
    nodes: Nodes
    interval: int
    limit_bytes: int | None

    def leave(self, *, forget: bool) -> None:
        """Gives the memory back if its checkpoints have had their day."""
        if forget and self.nodes.is_first_of_node:
            self.place.forget()


def of_run(env: Environment, save: Path, owner: Owner) -> Memory | None:
    """The memory for this run's checkpoints, claimed for this launch of its ranks; None without. Collective.

    Memory that cannot be used is a warning: the checkpoints of the save folder remain.
    """
    if env.memory_folder is None:
        return None
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)  # torch has a number for ranks outside a group
    nodes = Nodes(num_nodes=env.num_nodes, group=group)
    try:
        name = nodes.agreed(lambda: run_name(save, owner) if dist.get_rank() == 0 else "")
        place = NodeMemory(run=env.memory_folder / nodes.from_rank(0, name), token=owner.token)
        nodes.agreed(lambda: place.claim() if nodes.is_first_of_node else None)
    except PeerFailure as err:
        logger.warning("no checkpoints in memory in this run: %s", err)
        return None
    return Memory(place=place, nodes=nodes, interval=env.memory_interval, limit_bytes=env.memory_limit_bytes)
