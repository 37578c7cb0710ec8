"""SwanLab run, when report_to names swanlab. Works offline too (SWANLAB_MODE=offline; `swanlab sync` uploads it later).

A restarted job continues the same run: the run's id is stored beside its files.
"""

from __future__ import annotations

from pathlib import Path

from megatron_trainer.report.jsonl import eval_row, log_row
from megatron_trainer.report.records import EvalRecord, Event, FinishRecord, LogRecord, RunInfo
from megatron_trainer.report.tracking import as_os_error, facts, imported, numbers, run_id, without_key


class SwanLab:
    """Logs the rows of logging.jsonl under their iteration."""

    def __init__(self, project: str, name: str, folder: Path, *, interval: int) -> None:
        self.interval = interval
        swanlab = imported("swanlab", "report_to", ["swanlab"])
        folder.mkdir(parents=True, exist_ok=True)
        quiet = swanlab.Settings(terminal={"proxy_type": "none"}, interactive=False)  # the pod's log stays in the pod
        try:
            self._run = swanlab.init(
                project=project,
                name=name or None,
                log_dir=str(folder),
                id=run_id(folder),
                resume="allow",
                settings=quiet,
            )
        except RuntimeError as err:
            raise without_key("report_to", ["swanlab"], "SWANLAB", err) from err

    def write(self, event: Event) -> None:
        """Logs the event; the run's facts and at last its outputs become its config."""
        with as_os_error("SwanLab"):
            match event:
                case RunInfo():
                    self._run.config.update(facts(event))
                case LogRecord():
                    self._run.log(numbers(log_row(event, log_throughput=True)), step=event.iteration)
                case EvalRecord():
                    self._run.log(numbers(eval_row(event)), step=event.iteration)
                case FinishRecord():
                    self._run.config.update({"phase": event.phase, **event.outputs})

    def close(self) -> None:
        """Waits until all logged data is uploaded, or stored when offline."""
        with as_os_error("SwanLab"):
            self._run.finish()
