"""Weights & Biases run, when wandb_project is set. Works offline too (WANDB_MODE=offline); uploads in its own process.

A restarted job continues the same W&B run: the run's id is stored beside its files.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from types import ModuleType

from megatron_trainer.failure import InvalidInput
from megatron_trainer.report.jsonl import Row, eval_row, log_row
from megatron_trainer.report.records import EvalRecord, Event, FinishRecord, LogRecord, RunInfo
from megatron_trainjob.violation import Violation


class WeightsAndBiases:
    """Logs the rows of logging.jsonl as W&B history, with the iteration as the horizontal axis."""

    def __init__(self, project: str, name: str, folder: Path, *, interval: int) -> None:
        self.interval = interval
        self._wandb = _import_wandb(project)
        folder.mkdir(parents=True, exist_ok=True)
        self._run = self._wandb.init(
            project=project,
            name=name or None,
            dir=str(folder),
            id=_run_id(folder),
            resume="allow",
            settings=self._wandb.Settings(console="off"),  # standard output is only for the pod's log
        )
        self._run.define_metric("*", step_metric="iteration")

    def write(self, event: Event) -> None:
        """Logs the event; the run's facts become its config."""
        match event:
            case RunInfo():
                facts = {"model": event.model, "task": event.task, "world_size": event.world_size, **event.layout}
                self._run.config.update({**facts, **event.arguments_given}, allow_val_change=True)
            case LogRecord():
                self._run.log(_numbers(log_row(event, log_throughput=True)))
            case EvalRecord():
                self._run.log(_numbers(eval_row(event)))
            case FinishRecord():
                self._run.summary.update({"phase": event.phase, **event.outputs})

    def close(self) -> None:
        """Waits until all logged data is uploaded, or stored when offline.

        The teardown waits for wandb's own process, which may still hold unwritten data; wandb would do this at
        interpreter exit, which a failing rank skips.
        """
        self._run.finish()
        self._wandb.teardown()


def _import_wandb(project: str) -> ModuleType:
    try:
        import wandb
    except ImportError as err:
        problem = Violation(
            path="spec.args.wandb_project",
            value=project,
            message="needs the Python package wandb, which this image does not have; install it or leave this empty",
        )
        raise InvalidInput((problem,)) from err
    return wandb


def _run_id(folder: Path) -> str:
    """The id of this folder's run, created on the first start."""
    path = folder / "run-id"
    if not path.exists():
        path.write_text(uuid.uuid4().hex[:8])
    return path.read_text().strip()


def _numbers(row: Row) -> dict[str, float]:
    return {name: value for name, value in row.items() if isinstance(value, int | float)}
