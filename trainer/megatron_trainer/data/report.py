"""The data report: rows read, rows dropped with reasons, rows trained on. Numbers only; it is printed elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_trainer.data.dataset import Items
from megatron_trainer.data.storage.lazy import LazyStore
from megatron_trainer.data.storage.store import Dropped, Store


@dataclass(frozen=True, kw_only=True)
class DropReport:
    """Rows of one dataset that were dropped for the same reason, with the first of them as an example."""

    reason: str
    rows: int
    example_location: str
    example_detail: str


@dataclass(frozen=True, kw_only=True)
class SourceReport:
    """One entry of `dataset`, `val_dataset` or `cached_dataset`: rows_read = rows_kept + the rows of all dropped.

    None if not known before training (streaming, lazy_tokenize). notes: other remarks for the user, such as splits of a
    folder that were not read.
    """

    name: str
    rows_read: int | None = None
    rows_kept: int | None = None
    rows_truncated: int | None = None
    tokens: int | None = None
    trained_tokens: int | None = None
    dropped: tuple[DropReport, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """rows[i] rows have more than edges[i] and at most edges[i+1] tokens."""

    edges: tuple[int, ...]
    rows: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class PackingReport:
    """rows of `length` tokens hold all items; fill is the share of their tokens that are not padding."""

    length: int
    rows: int
    fill: float
    longest_row: int


@dataclass(frozen=True, kw_only=True)
class ImageReport:
    """Images (and videos) of the rows of an epoch. Sizes are (width, height) in pixels as stored, by their area.

    tokens: of all of them; tokens_min, _median, _max: of one.
    """

    images: int
    videos: int
    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]
    tokens: int
    tokens_min: int
    tokens_median: int
    tokens_max: int


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """Everything about the data of a run. Lengths are tokens of an item (a pair counts both sequences).

    items: what the sampler indexes (packed rows, where packing is on). samples: rows of the datasets in an epoch.
    None if not known before training: everything for a stream, lengths and tokens for lazy_tokenize.
    from_cache: nothing had to be tokenized. stop_words: the texts, usually one special token each, with which trained
    answers end; generation has to stop at them, so they are in an exported generation_config.
    examples: the first sequences as they are trained, in pieces of (text, weight of the loss); none for a stream.
    thumbnails: their images, as data URIs.
    """

    datasets: tuple[SourceReport, ...]
    validation: tuple[SourceReport, ...] = ()
    items: int | None = None
    samples: int | None = None
    validation_items: int = 0
    tokens_per_epoch: int | None = None
    length_min: int | None = None
    length_median: int | None = None
    length_mean: float | None = None
    length_max: int | None = None
    histogram: Histogram | None = None
    packing: PackingReport | None = None
    from_cache: bool = False
    stop_words: tuple[str, ...] = ()
    examples: tuple[tuple[tuple[str, float], ...], ...] = ()
    images: ImageReport | None = None
    thumbnails: tuple[tuple[str, ...], ...] = ()

    def to_json(self) -> dict[str, object]:
        """The report as plain JSON values, without unknown ones."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def source_report(name: str, store: Store | LazyStore, notes: Iterable[str] = ()) -> SourceReport:
    """The report of one dataset."""
    said = tuple(note for note in notes if note)
    if isinstance(store, LazyStore):
        return SourceReport(name=name, rows_read=store.num_rows, notes=said)
    return SourceReport(
        name=name,
        rows_read=store.facts.num_rows,
        rows_kept=len(store),
        rows_truncated=store.facts.num_truncated,
        tokens=int(store.offsets[-1]),
        trained_tokens=store.num_trained_tokens,
        dropped=drop_reports(store.facts.dropped),
        notes=(*said, *note_lines(store.facts.notes)),
    )


LOUD_SHARE = 0.5
"""Share of a dataset's rows: a note about more of them is a warning."""


def loud_notes(report: SourceReport, store: Store | LazyStore) -> list[str]:
    """Notes about most rows of a dataset, which probably apply to all of it."""
    if isinstance(store, LazyStore):
        return []
    most = LOUD_SHARE * max(1, len(store))
    return [f"{report.name}: {note}" for note, count in store.facts.notes.items() if count >= most]


def note_lines(notes: Mapping[str, int]) -> list[str]:
    """Notes about kept rows, the most frequent first."""
    ordered = sorted(notes.items(), key=lambda entry: (-entry[1], entry[0]))
    return [f"{count:,} {'row' if count == 1 else 'rows'}: {note}" for note, count in ordered]


def drop_reports(dropped: Mapping[str, Dropped]) -> tuple[DropReport, ...]:
    """The rejections of a dataset, most frequent first."""
    ordered = sorted(dropped.items(), key=lambda entry: (-entry[1].count, entry[0]))
    return tuple(
        DropReport(
            reason=reason,
            rows=entry.count,
            example_location=str(entry.first.location),
            example_detail=entry.first.detail,
        )
        for reason, entry in ordered
    )


def histogram(lengths: NDArray[np.int64]) -> Histogram:
    """Rows by length, in bins that double: 1-16, 17-32, 33-64 tokens and so on."""
    longest = int(lengths.max(initial=16))
    edges = [0, 16]
    while edges[-1] < longest:
        edges.append(2 * edges[-1])
    counts = np.histogram(np.asarray(lengths) - 1, bins=edges)[0]
    return Histogram(edges=tuple(edges), rows=tuple(counts.tolist()))


def length_facts(items: Items) -> dict[str, Any]:
    """The fields of DataReport with the lengths of the items; empty if items are tokenized lazily or missing."""
    if len(items) == 0 or any(isinstance(store, LazyStore) for store in items.stores):
        return {}
    lengths = items.lengths()
    return {
        "tokens_per_epoch": int(lengths.sum()),
        "length_min": int(lengths.min()),
        "length_median": int(np.median(lengths)),
        "length_mean": float(lengths.mean()),
        "length_max": int(lengths.max()),
        "histogram": histogram(lengths),
    }


def image_report(items: Items, merge: int) -> ImageReport | None:
    """The images of the items; None without any, or if items are tokenized lazily. merge: sides of merged patches."""
    parts = []
    for number, store in enumerate(items.stores):
        if isinstance(store, LazyStore):
            return None
        sequences = store.facts.sequences_per_row
        times = np.bincount(items.rows[items.which == number], minlength=len(store)).repeat(sequences)
        parts.append(store.media.sizes.repeat(times[store.media.sequences], axis=0))
    sizes = np.concatenate(parts) if parts else np.empty((0, 6), np.int64)
    if not len(sizes):
        return None
    tokens = sizes[:, 3:].prod(axis=1) // merge**2
    by_area = np.argsort(sizes[:, 1] * sizes[:, 2], kind="stable")

    def size(place: int) -> tuple[int, int]:
        height, width = sizes[by_area[place], 1:3].tolist()
        return width, height

    return ImageReport(
        images=int((sizes[:, 0] == 0).sum()),
        videos=int((sizes[:, 0] == 1).sum()),
        smallest=size(0),
        median=size(len(sizes) // 2),
        largest=size(-1),
        tokens=int(tokens.sum()),
        tokens_min=int(tokens.min()),
        tokens_median=int(np.median(tokens)),
        tokens_max=int(tokens.max()),
    )
