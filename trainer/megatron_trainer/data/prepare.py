"""From the dataset arguments to the items that a run trains and validates on.

Each dataset is tokenized once into a store that all ranks (and later runs) look up by content; everything after that
(sampling, splitting, mixing, shuffling, packing) is arithmetic on indices, the same on every rank.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from megatron_trainer.data.cached import open_cached, open_validation
from megatron_trainer.data.conversation.formats import Recognition
from megatron_trainer.data.conversation.label import Label
from megatron_trainer.data.dataset import Dataset, Items, PackedRows, concatenate, identity, items_of
from megatron_trainer.data.load import Loaded, Loader, Progress, with_numbers
from megatron_trainer.data.ordering.arrange import mix, repeat, shuffled, split_off
from megatron_trainer.data.ordering.pack import fill, pack
from megatron_trainer.data.report import (
    DataReport,
    PackingReport,
    SourceReport,
    image_report,
    length_facts,
    loud_notes,
    source_report,
)
from megatron_trainer.data.row import as_json, parse_row
from megatron_trainer.data.settings import DataSettings, data_settings
from megatron_trainer.data.show import examples, thumbnails
from megatron_trainer.data.storage.store import Store
from megatron_trainer.data.streaming.items import Stream
from megatron_trainer.data.vision.model import ImageRows
from megatron_trainer.failure import InvalidInput
from megatron_trainjob.args import head
from megatron_trainjob.args.field import TrainingTask
from megatron_trainjob.exit_codes import ExitCode
from megatron_trainjob.violation import Violation

if TYPE_CHECKING:
    from megatron_trainjob.args.tree import TrainArgs

logger = logging.getLogger(__name__)

EXAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The items of a run. validation is None when no validation data was asked for."""

    train: Dataset | Stream
    validation: Dataset | None
    report: DataReport

    @property
    def num_items(self) -> int | None:
        """Items of an epoch, None for a stream."""
        return None if isinstance(self.train, Stream) else len(self.train)

    @property
    def lengths(self) -> NDArray[np.int64] | None:
        """Tokens of each item of an epoch; None of packed rows, which have one length, and of a stream."""
        return self.train.lengths() if isinstance(self.train, Items) else None

    @property
    def identity(self) -> str:
        """A key of the trained data and its order; for a stream it is derived from the names and dates of its files."""
        return self.train.notes.name if isinstance(self.train, Stream) else identity(self.train)


def prepare(
    args: TrainArgs,
    tokenizer: PreTrainedTokenizerBase,
    *,
    task: TrainingTask,
    max_length: int,
    save: Path,
    is_first_rank: bool,
    cache_directory: Path | None = None,
    progress: Progress | None = None,
    label: Label | None = None,
    images: ImageRows | None = None,
) -> Prepared:
    """The training and validation items of a run; every rank gets the same.

    Call it on all ranks, concurrently or not: the first one tokenizes, the others wait for the result.
    (With load_from_cache_file false the first rank has to return before the others start.)

    max_length: tokens a sample may have, resolved. save: the run's folder; is_first_rank: whether this process writes
    val_dataset.jsonl there. cache_directory: where tokenized data is kept; None keeps it in the run's folder.
    label: the kind of labels in the rows of a classifier. images: reads those of rows, None for a text model.
    progress: called with the dataset's name and the rows tokenized so far.

    Raises InvalidInput for datasets that cannot be found or read, have no usable row, or (strict) have a bad row.
    """
    vision = None if images is None else images.settings
    settings = data_settings(args, task=task, max_length=max_length, label=label, vision=vision)
    cache = cache_directory or save / "data_cache"
    renews = is_first_rank and not settings.reads_cache
    loader = Loader(settings, tokenizer, cache, renews=renews, progress=progress, images=images)
    is_lazy = settings.tokenizing == "lazy"
    validation = loader.load("val_dataset", settings.val_datasets, is_lazy=is_lazy)
    if settings.tokenizing == "streaming":
        return _streamed(settings, loader, validation)
    train = loader.load("dataset", settings.datasets, is_lazy=is_lazy)
    cached = _open_cached(settings, cache)
    train_parts, split_parts = _split(train, settings)
    if split_parts and is_first_rank:
        _write_rows(train, split_parts, save / "val_dataset.jsonl")
    validation_parts = [*split_parts, *_open_cached_validation(settings, cache)]
    prepared = _prepared(settings, train, train_parts, validation, validation_parts, cached)
    stop_words = loader.encoder.template.stop_words
    report = replace(prepared.report, stop_words=stop_words)
    return replace(prepared, report=report if is_lazy else _with_examples(args, report, prepared, tokenizer, images))


def _with_examples(
    args: TrainArgs,
    report: DataReport,
    prepared: Prepared,
    tokenizer: PreTrainedTokenizerBase,
    images: ImageRows | None,
) -> DataReport:
    """The report with the first sequences and their images, and the sizes of all images."""
    assert not isinstance(prepared.train, Stream)
    kind = head.group_kind(args)
    if images is None:
        return replace(report, examples=examples(prepared.train, tokenizer, EXAMPLES, kind))
    items = prepared.train.items if isinstance(prepared.train, PackedRows) else prepared.train
    return replace(
        report,
        examples=examples(prepared.train, tokenizer, EXAMPLES, kind, images.tokens),
        images=image_report(items, images.tokens.merge),
        thumbnails=thumbnails(prepared.train, EXAMPLES, images.reader),
    )


@dataclass(frozen=True, kw_only=True)
class _Cached:
    """One folder of cached_dataset."""

    name: str
    train: Store
    validation: Store | None


def _open_cached(settings: DataSettings, cache: Path) -> list[_Cached]:
    opened, violations = [], []
    for number, folder in enumerate(settings.cached):
        try:
            train, validation = open_cached(folder, cache)
            for store in (train, validation):
                if store is not None:
                    _check_cached(store, settings)
            opened.append(_Cached(name=str(folder), train=train, validation=validation))
        except (ValueError, OSError) as err:
            violations.append(Violation(path=f"cached_dataset[{number}]", value=str(folder), message=str(err)))
    if violations:
        raise InvalidInput(tuple(violations), ExitCode.MISSING_INPUT)
    return opened


def _open_cached_validation(settings: DataSettings, cache: Path) -> list[Items]:
    opened = []
    for number, folder in enumerate(settings.cached_validation):
        try:
            store = open_validation(folder, cache)
            _check_cached(store, settings)
            opened.append(items_of(store))
        except (ValueError, OSError) as err:
            raise _refusal(f"cached_val_dataset[{number}]", str(folder), str(err)) from err
    return opened


def _check_cached(store: Store, settings: DataSettings) -> None:
    _check_purpose(store, settings.encode.recognition)
    longest, limit = int(store.lengths.max(initial=0)), settings.encode.max_length
    if limit is not None and longest > limit:
        raise ValueError(f"it holds a sample of {longest} tokens; set max_length to at least that, or create it again")


def _check_purpose(store: Store, recognition: Recognition) -> None:
    """Raises ValueError if the rows were tokenized for another task: they would be trained on in another sense."""
    again = "create it again with the task_type, rlhf_type and loss_type of this job"
    facts, wanted = store.facts, 2 if recognition.needs_rejected else 1
    if facts.sequences_per_row != wanted:
        raise ValueError(f"it holds {facts.sequences_per_row} sequences per row, but this task needs {wanted}; {again}")
    if facts.is_grouped != (recognition.grouping is not None):
        held, asked = ("groups of texts", "single ones") if facts.is_grouped else ("single texts", "groups of them")
        raise ValueError(f"its rows are {held}, but this task needs {asked}; {again}")
    if len(store) == 0 or wanted == 2:  # a margin may be missing, and is left aside where none is read
        return
    grouping = recognition.grouping
    needs_labels = grouping.has_target if grouping else recognition.needs_label or recognition.label is not None
    if store.has_targets() != needs_labels:
        held, asked = ("labels", "none") if store.has_targets() else ("no labels", "them")
        raise ValueError(f"its rows have {held}, but this task needs {asked}; {again}")
    if recognition.label is not None and store.num_trained_tokens != len(store):
        raise ValueError(f"its rows train the tokens of answers, but this task scores only the last token; {again}")


def _streamed(settings: DataSettings, loader: Loader, validation: Sequence[Loaded]) -> Prepared:
    items = _validation_items(validation, [], [], settings)
    dataset = None if items is None else _packed(items, settings)[0]
    train = loader.open_stream(settings.datasets)
    report = DataReport(
        datasets=tuple(
            SourceReport(name=spec.text, notes=(part.source.note,) if part.source.note else ())
            for spec, part in zip(settings.datasets, train.mixture.sources, strict=True)
        ),
        validation=tuple(source_report(entry.spec.text, entry.store, [entry.source.note]) for entry in validation),
        validation_items=0 if dataset is None else len(dataset),
        stop_words=loader.encoder.template.stop_words,
    )
    return Prepared(train=train, validation=dataset, report=report)


def _split(loaded: Sequence[Loaded], settings: DataSettings) -> tuple[list[Items], list[Items]]:
    """Each dataset's training items (repeated if #N requires it) and the items split off for validation."""
    kept, split = [], []
    generator = np.random.default_rng([settings.seed, 1])
    for number, entry in enumerate(loaded):
        items = items_of(entry.store)
        if settings.split_ratio > 0:
            items, validation = split_off(items, settings.split_ratio, limit=entry.spec.num_rows, generator=generator)
            split.append(validation)
            if len(items) == 0:
                raise _refusal(f"dataset[{number}]", entry.spec.text, "split_dataset_ratio leaves no row for training")
        times = entry.num_rows_wanted / entry.store.num_rows
        kept.append(repeat(items, times, generator=generator if settings.shuffle else None) if times > 1 else items)
    return kept, split


def _prepared(
    settings: DataSettings,
    train: Sequence[Loaded],
    train_parts: Sequence[Items],
    validation: Sequence[Loaded],
    split_parts: Sequence[Items],
    cached: Sequence[_Cached],
) -> Prepared:
    items = _mixed([*train_parts, *(items_of(entry.train) for entry in cached)], settings)
    validation_items = _validation_items(validation, split_parts, cached, settings)
    dataset, packing = _packed(items, settings)
    validation_dataset = None if validation_items is None else _packed(validation_items, settings)[0]
    reports = [(source_report(entry.spec.text, entry.store), entry.store) for entry in [*train, *validation]]
    for line in (line for source, store in reports for line in loud_notes(source, store)):
        logger.warning("most rows of %s", line)
    report = DataReport(
        datasets=(
            *(source_report(entry.spec.text, entry.store, [entry.source.note]) for entry in train),
            *(source_report(entry.name, entry.train) for entry in cached),
        ),
        validation=tuple(source_report(entry.spec.text, entry.store, [entry.source.note]) for entry in validation),
        items=len(dataset),
        samples=len(items),
        validation_items=0 if validation_dataset is None else len(validation_dataset),
        packing=packing,
        from_cache=not any(entry.is_new for entry in [*train, *validation]),
        **length_facts(items),
    )
    return Prepared(train=dataset, validation=validation_dataset, report=report)


def _mixed(parts: Sequence[Items], settings: DataSettings) -> Items:
    try:
        items = mix(
            parts,
            probabilities=settings.interleave_prob,
            stopping=settings.stopping_strategy,
            generator=np.random.default_rng([settings.seed, 2]),
        )
    except ValueError as err:
        raise _refusal("interleave_prob", settings.interleave_prob, str(err)) from err
    return shuffled(items, np.random.default_rng([settings.seed, 3])) if settings.shuffle else items


def _validation_items(
    validation: Sequence[Loaded], split_parts: Sequence[Items], cached: Sequence[_Cached], settings: DataSettings
) -> Items | None:
    for number, entry in enumerate(validation):
        if entry.num_rows_wanted > entry.store.num_rows:
            message = f"the dataset has only {entry.store.num_rows} rows; request fewer"
            raise _refusal(f"val_dataset[{number}]", entry.spec.text, message)
    parts = [*(items_of(entry.store) for entry in validation), *split_parts]
    parts += [items_of(entry.validation) for entry in cached if entry.validation is not None]
    if not parts:
        return None
    items = concatenate(parts)
    return shuffled(items, np.random.default_rng([settings.seed, 4])) if settings.shuffle_validation else items


def _packed(items: Items, settings: DataSettings) -> tuple[Dataset, PackingReport | None]:
    if settings.packing_length is None:
        return items, None
    lengths: NDArray[np.int64] = items.lengths(settings.sample_multiple)
    packing = pack(lengths, settings.packing_length)
    rows = PackedRows(items=items, order=packing.order, starts=packing.starts)
    totals = np.add.reduceat(lengths[packing.order], packing.starts[:-1])
    report = PackingReport(
        length=settings.packing_length,
        rows=len(packing),
        fill=fill(items.lengths(), packing, settings.packing_length),
        longest_row=int(totals.max()),
    )
    return rows, report


def _write_rows(loaded: Sequence[Loaded], parts: Sequence[Items], path: Path) -> None:
    """Write the original rows of the items, so that they can be used as val_dataset."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.part")
    with aside.open("w", encoding="utf-8") as stream:
        for entry, part in zip(loaded, parts, strict=True):
            for record in with_numbers(entry.source, entry.store.numbers[part.rows]):
                stream.write(json.dumps(parse_row(record.payload), ensure_ascii=False, default=as_json) + "\n")
    os.replace(aside, path)


def _refusal(path: str, value: object, message: str) -> InvalidInput:
    return InvalidInput((Violation(path=path, value=value, message=message),), ExitCode.BAD_DATA)
