"""Opens dataset entries: as stores of tokens, as rows to tokenize lazily (both from the cache, or written now), or as a
stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from megatron_trainer.data.encoding.encode import Encoder
from megatron_trainer.data.reading import split
from megatron_trainer.data.reading.rename import Renamed
from megatron_trainer.data.reading.source import HubAccess, Source, open_source
from megatron_trainer.data.reading.spec import DatasetSpec
from megatron_trainer.data.reading.unpair import Unpaired
from megatron_trainer.data.reading.unroll import Unrolled
from megatron_trainer.data.row import Record
from megatron_trainer.data.settings import DataSettings
from megatron_trainer.data.storage.cache import opened
from megatron_trainer.data.storage.fingerprint import (
    code_digest,
    file_identities,
    source_digest,
    starts_of_paths,
    store_key,
    text_key,
    tokenizer_digest,
)
from megatron_trainer.data.storage.lazy import LazyStore, write_rows
from megatron_trainer.data.storage.store import Store
from megatron_trainer.data.storage.tokenize import refuse_first_bad, tokenize
from megatron_trainer.data.streaming.items import Stream
from megatron_trainer.data.streaming.rows import Mixture, StreamSource
from megatron_trainer.data.vision.model import ImageRows
from megatron_trainer.failure import InvalidInput
from megatron_trainjob.exit_codes import ExitCode
from megatron_trainjob.violation import Violation

Progress = Callable[[str, int], None]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """One dataset entry, ready to be read. is_new: written now, not found in the cache."""

    spec: DatasetSpec
    source: Source
    store: Store | LazyStore
    is_new: bool

    @property
    def num_rows_wanted(self) -> int:
        """Number of rows that the entry requests, or has."""
        return self.spec.num_rows or self.store.num_rows


class Loader:
    """Opens dataset entries and tokenizes them, or finds them in the cache folder.

    renews: rewrite even cached data. progress: called with an entry and the rows done so far. images: reads those of
    rows, None for a text model.
    """

    def __init__(
        self,
        settings: DataSettings,
        tokenizer: PreTrainedTokenizerBase,
        cache: Path,
        *,
        renews: bool = False,
        progress: Progress | None = None,
        images: ImageRows | None = None,
    ) -> None:
        self._settings = settings
        self._cache = cache
        self._renews = renews
        self._progress = progress
        self._tokenizer_digest = tokenizer_digest(tokenizer)
        self.encoder = Encoder(tokenizer, settings.encode, images)

    def load(self, path: str, specs: Sequence[DatasetSpec], *, is_lazy: bool) -> list[Loaded]:
        """The stores of all entries of the argument `path`.

        Raises InvalidInput with every entry that cannot be opened, or with every one that holds no usable row.
        """
        sources = [self._single(source) for source in open_all(path, specs, self._access())]
        loaded = [
            self._rows(spec, source) if is_lazy else self._tokens(spec, source)
            for spec, source in zip(specs, sources, strict=True)
        ]
        _refuse_empty(path, loaded)
        return loaded

    def open_stream(self, specs: Sequence[DatasetSpec]) -> Stream:
        """The stream of the entries of `dataset`. Raises InvalidInput with every entry that cannot be opened."""
        settings = self._settings
        found = open_all("dataset", specs, replace(self._access(), streams=True))
        sources = [self._single(source) for source in found]
        parts = [StreamSource(source=s, num_rows=e.num_rows) for e, s in zip(specs, sources, strict=True)]
        stream = Stream(
            mixture=Mixture(
                sources=tuple(parts),
                probabilities=settings.interleave_prob,
                stopping=settings.stopping_strategy,
                seed=settings.seed,
            ),
            encoder=self.encoder,
            window_rows=settings.window_rows,
            shuffle=settings.shuffle,
            seed=settings.seed,
            packing_length=settings.packing_length,
            sample_multiple=settings.sample_multiple,
            is_strict=settings.is_strict,
            notes=self._cache,
        )
        return replace(stream, notes=self._cache / f"stream-{self._stream_key(stream, specs)}")

    def _single(self, source: Source) -> Source:
        """The source with one answer per row, if the task or split_turns requires it."""
        recognition = self._settings.encode.recognition
        if self._settings.splits_turns:
            loss_scale, sees = self._settings.encode.loss_scale, self._settings.encode.vision is not None
            return Unrolled(whole=source, recognition=recognition, loss_scale=loss_scale, sees=sees)
        return Unpaired(whole=source, columns=recognition.columns) if recognition.needs_label else source

    def _access(self) -> HubAccess:
        return HubAccess(token=self._settings.hub_token, redownloads=self._settings.redownloads)

    def _stream_key(self, stream: Stream, specs: Sequence[DatasetSpec]) -> str:
        """The key of everything that determines which items a rank reads; files by name and date, not by content."""
        identities = [file_identities(part.source) for part in stream.mixture.sources]
        choice: list[object] = [
            stream.mixture.probabilities,
            stream.mixture.stopping,
            stream.window_rows,
            stream.shuffle,
        ]
        choice += [stream.seed, stream.packing_length, stream.sample_multiple, [spec.text for spec in specs]]
        return store_key(str(identities), self._tokenizer_digest, self.encoder, str(choice))

    def _digest(self, source: Source) -> str:
        digest, vision = source_digest(source, self._cache / "digests"), self.encoder.settings.vision
        return digest if vision is None else f"{digest} {starts_of_paths(source, vision.root)}"

    def _choice(self, spec: DatasetSpec) -> str:
        return f"{spec.num_rows} {self._settings.shuffle} {self._settings.seed}" if spec.num_rows else ""

    def _records(self, spec: DatasetSpec, source: Source) -> Iterable[Record]:
        return chosen_records(spec, source, shuffle=self._settings.shuffle, seed=self._settings.seed)

    def _tokens(self, spec: DatasetSpec, source: Source) -> Loaded:
        key = store_key(self._digest(source), self._tokenizer_digest, self.encoder, self._choice(spec))
        folder = self._cache / key
        is_new = self._renews or not folder.exists()
        progress = self._progress
        write = partial(
            tokenize,
            encoder=self.encoder,
            num_processes=self._settings.num_processes,
            is_strict=self._settings.is_strict,
            progress=None if progress is None else partial(progress, spec.text),
        )
        store = opened(
            folder,
            lambda aside: write(self._records(spec, source), directory=aside),
            Store,
            renew=self._renews,
        )
        if self._settings.is_strict:
            refuse_first_bad(entry.first for entry in store.facts.dropped.values())
        return Loaded(spec=spec, source=source, store=store, is_new=is_new)

    def _rows(self, spec: DatasetSpec, source: Source) -> Loaded:
        folder = self._cache / f"rows-{text_key(f'{code_digest()} {self._digest(source)} {self._choice(spec)}')}"
        is_new = self._renews or not folder.exists()
        store = opened(
            folder,
            lambda aside: write_rows(self._records(spec, source), aside),
            partial(LazyStore, encoder=self.encoder, is_strict=self._settings.is_strict),
            renew=self._renews,
        )
        return Loaded(spec=spec, source=source, store=store, is_new=is_new)


def open_all(path: str, specs: Sequence[DatasetSpec], access: HubAccess) -> list[Source]:
    """The sources of all entries of the argument `path`.

    Raises InvalidInput with every entry that cannot be opened.
    """
    sources: list[Source] = []
    violations = []
    splits = split.VALIDATION if path == "val_dataset" else split.TRAINING
    for number, spec in enumerate(specs):
        try:
            source = open_source(spec, access, splits=splits)
            sources.append(Renamed(whole=source, columns=dict(spec.columns)) if spec.columns else source)
        except (ValueError, OSError) as err:
            violations.append(Violation(path=f"{path}[{number}]", value=spec.text, message=str(err)))
    if violations:
        raise InvalidInput(tuple(violations), ExitCode.MISSING_INPUT)
    return sources


def chosen_records(spec: DatasetSpec, source: Source, *, shuffle: bool, seed: int) -> Iterable[Record]:
    """The rows that #N selects: N sampled without replacement, or the first N without shuffling.

    All rows if there are at most N.
    """
    if spec.num_rows is None:
        return source.records()
    if not shuffle:
        return islice(source.records(), spec.num_rows)
    total = sum(1 for _ in source.records())
    if spec.num_rows >= total:
        return source.records()
    return with_numbers(source, np.random.default_rng(seed).choice(total, spec.num_rows, replace=False))


def with_numbers(source: Source, numbers: NDArray[np.int64]) -> Iterator[Record]:
    """The rows with these numbers, in the order of the source."""
    wanted = set(numbers.tolist())
    return (record for record in source.records() if record.number in wanted)


def _refuse_empty(path: str, loaded: Sequence[Loaded]) -> None:
    violations = [
        Violation(path=f"{path}[{number}]", value=entry.spec.text, message=_nothing_left(entry.store))
        for number, entry in enumerate(loaded)
        if len(entry.store) == 0
    ]
    if violations:
        raise InvalidInput(tuple(violations), ExitCode.BAD_DATA)


def _nothing_left(store: Store | LazyStore) -> str:
    dropped = store.facts.dropped if isinstance(store, Store) else {}
    reasons = "; ".join(
        f"{entry.count} x {reason}, first at {entry.first.location} {entry.first.detail}".strip()
        for reason, entry in dropped.items()
    )
    return f"none of its {store.num_rows} rows can be trained on: {reasons or 'it is empty'}"
