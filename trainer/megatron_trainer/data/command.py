"""python -m megatron_trainer data: says what a run would train on, and can write it down, without training.

    python -m megatron_trainer data --task sft --config args.yaml [--show 5 [--tokens]] [--report data.json]
        [--write-cached DIR]

Takes the arguments of training. Data that training would read lazily or as a stream is read whole, to account for it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from megatron_trainer import model_source
from megatron_trainer.data.cached import write_store
from megatron_trainer.data.dataset import Items, PackedRows
from megatron_trainer.data.prepare import Prepared, prepare
from megatron_trainer.data.report import DataReport, Histogram
from megatron_trainer.data.settings import label_of
from megatron_trainer.data.show import lines, sequences_of
from megatron_trainer.data.vision.model import image_rows_of
from megatron_trainer.failure import InvalidInput, TrainingError
from megatron_trainer.report.facts import data_facts
from megatron_trainjob.args import derive, head
from megatron_trainjob.args.cli import parse_command_line
from megatron_trainjob.args.field import TRAINING_TASKS, TrainingTask
from megatron_trainjob.args.model.check import check
from megatron_trainjob.args.parse import Refused
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.exit_codes import ExitCode
from megatron_trainjob.violation import Violation

BAR_WIDTH = 40
LIMIT = "max_position_embeddings"
ROWS_BETWEEN_NEWS = 10_000


def main(argv: Sequence[str]) -> int:
    """Returns the exit code: 0, or that of training with the same arguments and data."""
    own, rest = _parser().parse_known_args(list(argv))
    try:
        args = _arguments(rest, own.task)
        if own.write_cached is None:
            prepared = _prepare(args, own.task, Path(derive.save_directory(args)))
            report = prepared.report
            sys.stdout.writelines(f"{line}\n" for line in shown(args, prepared, own.show, shows_tokens=own.tokens))
        else:
            report = write_cached(args, own.task, own.write_cached)
    except TrainingError as err:
        sys.stderr.write(f"{err}\n")
        return int(err.exit_code)
    sys.stdout.writelines(f"{line}\n" for line in describe(report))
    if own.report is not None:
        own.report.write_text(json.dumps(report.to_json(), indent=2))
    if own.write_cached is not None:
        sys.stdout.write(f"written: {own.write_cached} (pass it as cached_dataset)\n")
    return ExitCode.OK


def write_cached(args: TrainArgs, task: TrainingTask, folder: Path) -> DataReport:
    """Tokenizes the data of the arguments into a folder for cached_dataset; packing is left to training.

    Raises InvalidInput for data that cannot be found or used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="tokens-") as aside:
        prepared = _prepare(replace(args, packing=False), task, Path(aside))
        for name, items in (("train", prepared.train), ("val", prepared.validation)):
            if isinstance(items, Items):
                write_store(items, folder / name)
    return prepared.report


def shown(args: TrainArgs, prepared: Prepared, count: int, *, shows_tokens: bool) -> Iterator[str]:
    """The first sequences as they are trained, each with a heading: trained text in color, or in brackets."""
    if count == 0 or not isinstance(prepared.train, Items | PackedRows):
        return
    directory = model_source.folder(args)
    tokenizer = model_source.tokenizer(args, directory)
    images = image_rows_of(args, directory, _config(args, directory), tokenizer, None)
    vision = None if images is None else images.tokens
    in_color = sys.stdout.isatty()
    for number, (part, sample) in enumerate(
        islice(sequences_of(prepared.train, head.group_kind(args)), count), start=1
    ):
        trained = int((sample.labels >= 0).sum())
        yield f"--- {number}{f' {part}' if part else ''}: {sample.length:,} tokens, {trained:,} trained"
        yield from lines(sample, tokenizer, in_color=in_color, shows_tokens=shows_tokens, vision=vision)


def describe(report: DataReport) -> Iterator[str]:
    """The report as lines of text: the facts, with an example of each kind of dropped row, and the lengths as bars."""
    for label, fact in data_facts(report.to_json()):
        yield f"{label}: {fact}"
    if report.histogram is not None:
        yield from _bars(report.histogram)


def _bars(histogram: Histogram) -> Iterator[str]:
    most = max(1, *histogram.rows)
    for low, high, rows in zip(histogram.edges[:-1], histogram.edges[1:], histogram.rows, strict=True):
        yield f"{low + 1:>9,} - {high:>9,} tokens {rows:>11,} {'#' * round(BAR_WIDTH * rows / most)}".rstrip()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m megatron_trainer data", allow_abbrev=False, description=__doc__)
    parser.add_argument("--task", choices=TRAINING_TASKS, default="sft", help="what the data is for")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print the first N sequences as trained")
    parser.add_argument("--tokens", action="store_true", help="with --show: one token a line, with id and weight")
    parser.add_argument("--report", type=Path, help="file that takes the report as JSON")
    parser.add_argument("--write-cached", type=Path, help="folder that takes the tokenized data")
    return parser


def _arguments(argv: Sequence[str], task: TrainingTask) -> TrainArgs:
    parsed = parse_command_line(argv, task)
    for warning in parsed.warnings:
        sys.stderr.write(f"{warning}\n")
    if isinstance(parsed, Refused):
        raise InvalidInput(parsed.violations)
    return parsed.args


def _prepare(args: TrainArgs, task: TrainingTask, save: Path) -> Prepared:
    whole = replace(args, streaming=False, lazy_tokenize=False)
    directory = model_source.folder(args)
    tokenizer = model_source.tokenizer(args, directory)
    config = _config(args, directory)
    return prepare(
        whole,
        tokenizer,
        task=task,
        max_length=_max_length(args, config),
        save=save,
        is_first_rank=False,
        label=label_of(args, config),
        images=image_rows_of(args, directory, config, tokenizer, save / "data_cache"),
        progress=_tell,
    )


def _config(args: TrainArgs, directory: Path) -> Mapping[str, Any]:
    """config.json as training reads it; that of a family which is not trained as it is."""
    return check(model_source.config(directory), args).config


def _max_length(args: TrainArgs, config: Mapping[str, Any]) -> int:
    inner = config.get("text_config")
    known = derive.max_length(args, config) or (inner if isinstance(inner, Mapping) else config).get(LIMIT)
    if isinstance(known, int) and known > 0:
        return known
    message = f"config.json has no {LIMIT}; say how many tokens a sample may have"
    raise InvalidInput((Violation(path="max_length", value=None, message=message),))


def _tell(name: str, rows: int) -> None:
    if rows // ROWS_BETWEEN_NEWS * ROWS_BETWEEN_NEWS > rows - 256:
        sys.stderr.write(f"tokenized {rows:,} rows of {name}\n")
