"""The data report: what was read, what was dropped and why, what is trained on. Numbers only; others print it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_trainer.data.store import Dropped, Store


@dataclass(frozen=True, kw_only=True)
class DropReport:
    """Rows of one dataset that were dropped for the same reason, with the first of them as an example."""

    reason: str
    rows: int
    example_location: str
    example_detail: str


@dataclass(frozen=True, kw_only=True)
class SourceReport:
    """One entry of `dataset` or `val_dataset`: rows_read = rows_kept + the rows of all dropped."""

    name: str
    rows_read: int
    rows_kept: int
    rows_truncated: int
    tokens: int
    trained_tokens: int
    dropped: tuple[DropReport, ...]


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
class DataReport:
    """Everything about the data of a run. Lengths are tokens of an item (a pair counts both sequences).

    items: what the sampler indexes (packed rows, where packing is on). samples: rows of the datasets in an epoch.
    """

    datasets: tuple[SourceReport, ...]
    validation: tuple[SourceReport, ...]
    items: int
    samples: int
    validation_items: int
    tokens_per_epoch: int
    length_min: int
    length_median: int
    length_mean: float
    length_max: int
    histogram: Histogram
    packing: PackingReport | None
    from_cache: bool

    def to_json(self) -> dict[str, object]:
        """The report as plain JSON values."""
        return asdict(self)


def source_report(name: str, store: Store) -> SourceReport:
    """The account of one dataset."""
    return SourceReport(
        name=name,
        rows_read=store.facts.num_rows,
        rows_kept=len(store),
        rows_truncated=store.facts.num_truncated,
        tokens=int(store.offsets[-1]),
        trained_tokens=store.num_trained_tokens,
        dropped=drop_reports(store.facts.dropped),
    )


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


def data_report(
    *,
    datasets: Sequence[SourceReport],
    validation: Sequence[SourceReport],
    lengths: NDArray[np.int64],
    num_items: int,
    num_validation_items: int,
    packing: PackingReport | None,
    from_cache: bool,
) -> DataReport:
    """The report of a run whose epoch holds samples of these lengths."""
    return DataReport(
        datasets=tuple(datasets),
        validation=tuple(validation),
        items=num_items,
        samples=len(lengths),
        validation_items=num_validation_items,
        tokens_per_epoch=int(lengths.sum()),
        length_min=int(lengths.min(initial=2**62)) if len(lengths) else 0,
        length_median=int(np.median(lengths)) if len(lengths) else 0,
        length_mean=float(lengths.mean()) if len(lengths) else 0.0,
        length_max=int(lengths.max(initial=0)),
        histogram=histogram(lengths),
        packing=packing,
        from_cache=from_cache,
    )
