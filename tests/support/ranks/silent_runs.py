"""Runs in which one rank stays away from the collectives of a step: what each gloo rank runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.support.ranks.tiny_run import TinyRun

MOST_S = 120.0
SLOWLY_S = 1.5


def skip(mapping: dict[str, object], away: int, records: Path) -> tuple[int, Any]:
    """(exit code, termination record) of a run of two ranks: in its second step `away` waits for the other's record."""
    import torch.distributed as dist

    from megatron_trainer import environment
    from megatron_trainer.environment import Environment
    from megatron_trainer.process import run
    from megatron_trainer.train import step
    from megatron_trainjob import termination

    rank = dist.get_rank()
    record = records / f"rank-{rank}.json"
    steps = 0

    def train_step(*args: Any, **kwargs: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 2 and rank == away:
            _wait_for(records / f"rank-{1 - away}.json")
            raise ValueError("was elsewhere")
        return step.train_step(*args, **kwargs)

    env = Environment(rank=rank, world_size=dist.get_world_size(), device="cpu", failure_file=record)
    flags = [part for name, value in mapping.items() for part in (f"--{name}", *_words(value))]
    with patch("megatron_trainer.train.loop.train_step", train_step), patch.object(environment, "read", lambda: env):
        return run.main(["sft", *flags]), termination.read(record)


def _wait_for(record: Path) -> None:
    deadline = time.monotonic() + MOST_S
    while not record.exists() and time.monotonic() < deadline:
        time.sleep(0.1)


def slowed(mapping: dict[str, object], slow: int) -> list[tuple[float, ...]]:
    """Each rank's own seconds in each step of a run in which one rank computes slowly."""
    import torch.distributed as dist

    from megatron_trainer.train import slow_ranks, step
    from tests.support.ranks.tiny_run import train_rank

    run_schedule, steps = step.run_schedule, []

    def slowly(*args: Any, **kwargs: Any) -> Any:
        if dist.get_rank() == slow:
            time.sleep(SLOWLY_S)
        return run_schedule(*args, **kwargs)

    class Seen(slow_ranks.SlowRanks):
        def add(self, own_s: Any, step_s: float) -> bool:
            steps.append(tuple(own_s))
            return super().add(own_s, step_s)

    with (
        patch.object(step, "run_schedule", slowly),
        patch.object(slow_ranks, "WINDOW_S", SLOWLY_S),
        patch("megatron_trainer.train.loop.SlowRanks", Seen),
    ):
        assert train_rank(mapping, "sft", None, {}).exit_code == 0
    return steps


def slow_to_evaluate(mapping: dict[str, object], slow: int, wait_s: float) -> TinyRun:
    """A run in which each global batch of an evaluation reaches one rank so much later."""
    import torch.distributed as dist

    from megatron_trainer.train.feed import EvaluationFeed
    from tests.support.ranks.tiny_run import train_rank

    on_time = EvaluationFeed.global_batches

    def late(self: Any, *given: Any) -> Any:
        for batches in on_time(self, *given):
            time.sleep(wait_s if dist.get_rank() == slow else 0)
            yield batches

    with patch.object(EvaluationFeed, "global_batches", late):
        return train_rank(mapping, "sft", None, {})


def _words(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [str(item).lower() if isinstance(item, bool) else str(item) for item in values]
