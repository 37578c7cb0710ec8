"""Weights & Biases run, when wandb_project is set. Works offline too (WANDB_MODE=offline); uploads in its own process.

A restarted job continues the same W&B run: the run's id is stored beside its files.
"""

from __future__ import annotations

from pathlib import Path

from megatron_trainer.report.jsonl import eval_row, log_row
from megatron_trainer.report.records import EvalRecord, Event, FinishRecord, LogRecord, RunInfo
from megatron_trainer.report.tracking import as_os_error, facts, imported, numbers, run_id, without_key


class WeightsAndBiases:
    """Logs the rows of logging.jsonl as W&B history, with the iteration as the horizontal axis."""

    def __init__(self, project: str, name: str, folder: Path, *, interval: int) -> None:
        self.interval = interval
        self._wandb = imported("wandb", "wandb_project", project)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._run = self._wandb.init(
                project=project,
                name=name or None,
                dir=str(folder),
                id=run_id(folder),
                resume="allow",
                settings=self._wandb.Settings(console="off"),  # standard output is only for the pod's log
            )
        except self._wandb.errors.UsageError as err:
            raise without_key("wandb_project", project, "WANDB", err) from err
        self._run.define_metric("*", step_metric="iteration")

    def write(self, event: Event) -> None:
        """Logs the event; the run's facts become its config."""
        with as_os_error("Weights & Biases"):
            match event:
                case RunInfo():
                    self._run.config.update(facts(event), allow_val_change=True)
                case LogRecord():
                    self._run.log(numbers(log_row(event, log_throughput=True)))
                case EvalRecord():
                    self._run.log(numbers(eval_row(event)))
                case FinishRecord():
                    self._run.summary.update({"phase": event.phase, **event.outputs})

    def close(self) -> None:
        """Waits until all logged data is uploaded, or stored when offline.

        The teardown waits for wandb's own process, which may still hold unwritten data; wandb would do this at
        interpreter exit, which a failing rank skips.
        """
        with as_os_error("Weights & Biases"):
            self._run.finish()
            self._wandb.teardown()
