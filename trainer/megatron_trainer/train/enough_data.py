"""Checks that the data fills at least one optimizer step: a run that trains nothing must not end as a success."""

from __future__ import annotations

from megatron_trainer.data.prepare import Prepared
from megatron_trainer.data.report import DataReport
from megatron_trainer.failure import InvalidInput, TrainingError
from megatron_trainjob.args import derive
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.exit_codes import ExitCode
from megatron_trainjob.violation import Violation


def check_first_step(args: TrainArgs, data: Prepared, data_parallel_size: int) -> None:
    """Returns if the data fills the first optimizer step; a stream, whose length is unknown, always passes.

    Raises InvalidInput (BAD_DATA) with the numbers and what to change, the same on all ranks.
    """
    if data.num_items is None:
        return
    micro_step = derive.samples_per_micro_step(args, data_parallel_size)
    an_epoch = derive.items_per_epoch(args, data.num_items, data_parallel_size)
    epochs = 1 if derive.dataloader_type(args) == "single" else args.max_epochs
    if an_epoch == 0:
        needed = f"one micro-batch on each data-parallel rank ({args.micro_batch_size} x {data_parallel_size})"
        remedy = "use fewer ranks or a smaller micro_batch_size, or add rows"
        raise _too_few(data, f"fewer than the {micro_step} of {needed}; {remedy}")
    if epochs is not None and an_epoch * epochs < args.global_batch_size:
        dealt = f"{an_epoch} in whole micro-batches of all ranks, read {_times(epochs)}"
        raise _too_few(data, f"less than one global_batch_size of {args.global_batch_size} ({dealt}); {_remedy(args)}")


def ended_before_first_step(args: TrainArgs) -> TrainingError:
    """The error for data that ends before the first step, which happens with streams only."""
    epochs = "" if args.max_epochs is None else f", read {_times(args.max_epochs)},"
    message = (
        f"spec.args.dataset: the data{epochs} ended before the first step was full: it has fewer usable rows than one "
        f"global_batch_size of {args.global_batch_size} on every data-parallel rank; {_remedy(args)}"
    )
    return TrainingError(ExitCode.BAD_DATA, message)


def _remedy(args: TrainArgs) -> str:
    once = "set dataloader_type to cyclic, " if args.dataloader_type == "single" and not args.streaming else ""
    return f"{once}lower global_batch_size, raise max_epochs, or add rows"


def _times(epochs: int) -> str:
    return "once" if epochs == 1 else f"{epochs} times"


def _too_few(data: Prepared, message: str) -> InvalidInput:
    unit = "packed rows" if data.report.packing else "rows"
    text = f"{data.num_items} {unit} to train on{_dropped(data.report)}: {message}"
    names = [source.name for source in data.report.datasets]
    return InvalidInput((Violation(path="spec.args.dataset", value=names, message=text),), ExitCode.BAD_DATA)


def _dropped(report: DataReport) -> str:
    dropped = sum(drop.rows for source in report.datasets for drop in source.dropped)
    read = sum(source.rows_read or 0 for source in report.datasets)
    return f" ({dropped} of {read} rows read were dropped)" if dropped else ""
