"""All sinks of a run's reports, in one list."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from megatron_trainer.report import kubeflow
from megatron_trainer.report.console import Console
from megatron_trainer.report.html_report import HtmlReport
from megatron_trainer.report.jsonl import Jsonl
from megatron_trainer.report.kubeflow import KubeflowPush
from megatron_trainer.report.progress_file import ProgressFile
from megatron_trainer.report.records import Sink
from megatron_trainer.report.swan_lab import SwanLab
from megatron_trainer.report.tensorboard import Choices, TensorBoard
from megatron_trainer.report.weights_and_biases import WeightsAndBiases
from megatron_trainjob import environment as variables
from megatron_trainjob.args import derive
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.progress import FILE as PROGRESS_FILE


def open_sinks(
    args: TrainArgs,
    save: Path,
    environment: Mapping[str, str],
    now: Callable[[], float],
    door: Path | None = None,
) -> tuple[Sink, ...]:
    """The sinks that args and environment ask for, in the order in which they get an event.

    The HTML report reads what logging.jsonl holds, so it comes after it.
    """
    rows, page = save / "logging.jsonl", save / "report.html"
    progress = Path(environment.get(variables.PROGRESS_FILE) or save / PROGRESS_FILE)
    attempt = int(environment.get(variables.RESTART_ATTEMPT, "0"))
    sinks: list[Sink] = [
        ProgressFile(progress, attempt=attempt, report_path=page, now=now),
        Console(sys.stdout, interval=args.log_interval, log_throughput=args.log_throughput),
        Jsonl(
            rows,
            interval=args.log_interval,
            log_throughput=args.log_throughput,
            door=door,
            most_rows=args.log_total_limit,
        ),
        TensorBoard(
            Path(derive.tensorboard_directory(args, str(save))),
            interval=args.tensorboard_log_interval,
            queue_size=args.tensorboard_queue_size,
            choices=tensorboard_choices(args),
            now=now,
        ),
        HtmlReport(page, rows=rows, interval=args.log_interval, now=now, door=door),
    ]
    if server := kubeflow.server_from(environment):
        sinks.append(KubeflowPush(server, now=now))
    if project := derive.wandb_project(args):
        folder = Path(derive.wandb_directory(args, str(save)))
        sinks.append(WeightsAndBiases(project, args.wandb_exp_name or save.name, folder, interval=args.log_interval))
    if project := derive.swanlab_project(args):
        name = args.swanlab_exp_name or save.name
        sinks.append(SwanLab(project, name, save / "swanlab", interval=args.log_interval))
    return tuple(sinks)


def tensorboard_choices(args: TrainArgs) -> Choices:
    """Which optional scalars the arguments ask for."""
    return Choices(
        learning_rate=not args.no_log_learning_rate_to_tensorboard,
        timers=args.log_timers_to_tensorboard,
        memory=args.log_memory_to_tensorboard,
        validation_perplexity=args.log_validation_ppl_to_tensorboard,
        throughput=args.log_throughput,
    )
