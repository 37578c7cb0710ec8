"""Dataset entries to stores of tokenised rows: found in the cache, or made now. One store for each entry."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from megatron_trainer.data.cache import built_once
from megatron_trainer.data.encode import Encoder
from megatron_trainer.data.fingerprint import source_digest, store_key, tokenizer_digest
from megatron_trainer.data.row import Record
from megatron_trainer.data.settings import DataSettings
from megatron_trainer.data.source import Source, open_source
from megatron_trainer.data.spec import DatasetSpec
from megatron_trainer.data.store import Store
from megatron_trainer.data.tokenise import refuse_first_bad, tokenise
from megatron_trainer.failure import InvalidInput
from megatron_trainjob.exit_codes import ExitCode
from megatron_trainjob.violation import Violation

Progress = Callable[[str, int], None]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """One tokenised dataset entry. is_new: tokenised just now, not found in the cache."""

    spec: DatasetSpec
    source: Source
    store: Store
    is_new: bool


class Loader:
    """Opens dataset entries and tokenises them, or finds them in the cache folder.

    renews: tokenise even what is in the cache. progress: called with an entry and its rows done so far.
    """

    def __init__(
        self,
        settings: DataSettings,
        tokenizer: PreTrainedTokenizerBase,
        cache: Path,
        *,
        renews: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self._settings = settings
        self._cache = cache
        self._renews = renews
        self._progress = progress
        self._encoder = Encoder(tokenizer, settings.encode)
        self._tokenizer_digest = tokenizer_digest(tokenizer)

    def load(self, path: str, specs: Sequence[DatasetSpec]) -> list[Loaded]:
        """The stores of all entries of the argument `path`.

        Raises InvalidInput with every entry that cannot be opened, or with every one that holds no usable row.
        """
        sources, violations = [], []
        for number, spec in enumerate(specs):
            try:
                sources.append(open_source(spec, hub_token=self._settings.hub_token))
            except (ValueError, OSError) as err:
                violations.append(Violation(path=f"{path}[{number}]", value=spec.text, message=str(err)))
        if violations:
            raise InvalidInput(tuple(violations), ExitCode.MISSING_INPUT)
        loaded = [self._load(spec, source) for spec, source in zip(specs, sources, strict=True)]
        _refuse_empty(path, loaded)
        return loaded

    def _load(self, spec: DatasetSpec, source: Source) -> Loaded:
        digest = source_digest(source, self._cache / "digests")
        choice = f"{spec.num_rows} {self._settings.shuffle} {self._settings.seed}" if spec.num_rows else ""
        folder = self._cache / store_key(digest, self._tokenizer_digest, self._encoder, choice)
        is_new = self._renews or not folder.exists()
        store = Store(built_once(folder, partial(self._build, spec, source), renew=self._renews))
        if self._settings.is_strict:
            refuse_first_bad(entry.first for entry in store.facts.dropped.values())
        return Loaded(spec=spec, source=source, store=store, is_new=is_new)

    def _build(self, spec: DatasetSpec, source: Source, directory: Path) -> None:
        progress = self._progress
        tokenise(
            chosen_records(spec, source, shuffle=self._settings.shuffle, seed=self._settings.seed),
            self._encoder,
            directory,
            num_processes=self._settings.num_processes,
            is_strict=self._settings.is_strict,
            progress=None if progress is None else partial(progress, spec.text),
        )


def chosen_records(spec: DatasetSpec, source: Source, *, shuffle: bool, seed: int) -> Iterable[Record]:
    """The rows that #N leaves: N drawn without repetition, or the first N when nothing is shuffled.

    All rows where there are no more than N.
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
    violations = []
    for number, entry in enumerate(loaded):
        if len(entry.store) == 0:
            reasons = "; ".join(
                f"{dropped.count} x {reason}, first at {dropped.first.location} {dropped.first.detail}".strip()
                for reason, dropped in entry.store.facts.dropped.items()
            )
            message = f"none of its {entry.store.facts.num_rows} rows can be trained on: {reasons or 'it is empty'}"
            violations.append(Violation(path=f"{path}[{number}]", value=entry.spec.text, message=message))
    if violations:
        raise InvalidInput(tuple(violations), ExitCode.BAD_DATA)
