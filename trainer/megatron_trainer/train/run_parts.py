"""The parts of a run, built by setup and used by the loop and the outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from megatron_trainer.backend import Backend
from megatron_trainer.checkpoint.lease import Heartbeat
from megatron_trainer.checkpoint.memory_save import MemorySaver
from megatron_trainer.checkpoint.save import Saver
from megatron_trainer.engine import Engine
from megatron_trainer.models.spec import ModelSpec
from megatron_trainer.report import Reporter
from megatron_trainer.state import TrainState
from megatron_trainer.tasks import Task
from megatron_trainer.termination import Termination
from megatron_trainer.train.feed import EvaluationFeed, Feed
from megatron_trainer.train.schedule import Schedule
from megatron_trainjob.args.tree import TrainArgs


def _nothing() -> None:
    """For a run that tells no one."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How often something that does not happen after each step happens."""

    strategy: str
    interval: int

    def is_due(self, run: Run, before: TrainState, state: TrainState) -> bool:
        """After the step from `before` to `state`."""
        if self.strategy == "epoch":
            return run.train.completed_epochs(before) < run.train.completed_epochs(state)
        return self.strategy == "steps" and state.iteration % self.interval == 0


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that a run needs, built once. stop_words: the texts with which trained answers end.

    on_step: called after each step.
    """

    args: TrainArgs
    spec: ModelSpec
    task: Task
    engine: Engine
    backend: Backend
    train: Feed
    validation: EvaluationFeed | None
    schedule: Schedule
    reporter: Reporter
    saver: Saver
    total_iterations: int
    eval_iters: int
    evaluations: Pace
    saves: Pace
    flops_per_token: float
    flops_per_target: float
    flops_per_pair: float
    flops_per_near_pair: float
    flops_per_patch: float
    termination: Termination
    stop_words: tuple[str, ...] = ()
    heartbeat: Heartbeat | None = None
    memory: MemorySaver | None = None
    on_step: Callable[[], None] = _nothing
