"""Whole tiny runs with checkpoints in memory, on gloo ranks that stand for one node or several."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.ranks.pool import gloo_ranks
from tests.support.ranks.tiny_run import TinyRun, train_rank


@dataclass(frozen=True, kw_only=True)
class MemoryRun:
    """What a run left, and what each rank logged from INFO on."""

    run: TinyRun
    logged: tuple[tuple[str, ...], ...]

    def said(self, text: str) -> bool:
        """Whether any rank logged it."""
        return any(text in line for lines in self.logged for line in lines)


def train(
    mapping: dict[str, object],
    memory: Path,
    *,
    ranks: int = 1,
    nodes: int = 1,
    interval: int = 2,
    stop_at: int | None = None,
    **env: Any,
) -> MemoryRun:
    """Trains; each node has a folder below `memory`. A run that is stopped saves nothing more."""
    found = gloo_ranks(ranks).run(_rank, mapping, memory, nodes, interval, stop_at, env)
    return MemoryRun(run=found[0][0], logged=tuple(lines for _, lines in found))


def _rank(
    mapping: dict[str, object], memory: Path, nodes: int, interval: int, stop_at: int | None, env: dict[str, Any]
) -> tuple[TinyRun, tuple[str, ...]]:
    import torch.distributed as dist

    node = dist.get_rank() * nodes // dist.get_world_size()
    place = {"memory_folder": memory / f"node-{node}", "memory_interval": interval}
    lines: list[str] = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("megatron_trainer")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        given = {"num_nodes": nodes, "node_rank": node, "save_on_termination": False, **place, **env}
        return train_rank(mapping, "sft", stop_at, given), tuple(lines)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
