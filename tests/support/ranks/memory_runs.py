"""Whole tiny runs with checkpoints in memory, on gloo ranks that stand for one node or several."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

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
    killed_at: tuple[int, int] | None = None,
    **env: Any,
) -> MemoryRun:
    """Trains; each node has a folder below `memory`. A run that is stopped saves nothing more. Each checkpoint is made.

    killed_at: (iteration, n): the last rank is killed as it publishes this checkpoint, in place of its n-th rename.
    """
    found = gloo_ranks(ranks).run(_rank, mapping, memory, nodes, interval, stop_at, killed_at, env)
    return MemoryRun(run=found[0][0], logged=tuple(lines for _, lines in found))


def _rank(
    mapping: dict[str, object],
    memory: Path,
    nodes: int,
    interval: int,
    stop_at: int | None,
    killed_at: tuple[int, int] | None,
    env: dict[str, Any],
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
    is_victim = killed_at is not None and dist.get_rank() == dist.get_world_size() - 1
    try:
        given = {"num_nodes": nodes, "node_rank": node, "save_on_termination": False, **place, **env}
        with _no_checkpoint_left_out(), _killed_at(*killed_at) if is_victim and killed_at else contextlib.nullcontext():
            return train_rank(mapping, "sft", stop_at, given), tuple(lines)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextlib.contextmanager
def _no_checkpoint_left_out() -> Iterator[None]:
    """Steps here are so short that on a busy machine the one before would still be written when the next is due."""
    from megatron_trainer.checkpoint.memory_save import MemorySaver

    save_if_due = MemorySaver.save_if_due

    def once_the_one_before_is_written(saver: MemorySaver, *of_step: Any) -> bool:
        if saver._running is not None:
            saver._running.exception()
        return save_if_due(saver, *of_step)

    with patch.object(MemorySaver, "save_if_due", once_the_one_before_is_written):
        yield


@contextlib.contextmanager
def _killed_at(iteration: int, number: int) -> Iterator[None]:
    from megatron_trainer.checkpoint.node_memory import NodeMemory

    publish, rename, renames = NodeMemory.publish, Path.rename, count(1)

    def rename_or_die(path: Path, target: Path) -> Path:
        if next(renames) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(path, target)

    def publish_and_die(place: NodeMemory, published: int) -> None:
        with patch.object(Path, "rename", rename_or_die) if published == iteration else contextlib.nullcontext():
            publish(place, published)

    with patch.object(NodeMemory, "publish", publish_and_die):
        yield
