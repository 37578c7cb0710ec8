"""Shows rows as they are trained: text split where the loss weight changes, for terminals, logs and reports."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np
from transformers import PreTrainedTokenizerBase

from megatron_trainer.data.collate import split
from megatron_trainer.data.values import Item, Sample
from megatron_trainjob.args.head import GroupKind

MOST_CHARACTERS = 1_000
"""Maximum characters of a piece in a report; the middle is left out."""
TRAINED, PLAIN = ("\x1b[1;32m", "\x1b[0m"), ("\u27e6", "\u27e7")
"""Markers around trained text, in a terminal and elsewhere."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Consecutive tokens of equal weight, 0 if they are not trained."""

    text: str
    weight: float
    tokens: tuple[str, ...]


def sequences_of(items: Iterable[Item], kind: GroupKind | None = None) -> Iterator[tuple[str, Sample]]:
    """Every sequence of the items, with its role in a pair or in a group of this kind."""
    for item in items:
        for part in item if isinstance(item, list) else [item]:
            if not isinstance(part, Sample):
                yield from (("chosen", part.chosen), ("rejected", part.rejected))
            elif kind is None:
                yield "", part
            else:
                members = split(part)
                yield from zip(_names(kind, part, len(members)), members, strict=True)


def _names(kind: GroupKind, group: Sample, count: int) -> list[str]:
    """The role of each sequence in a group."""
    if kind == "embedding":
        return ["anchor", "positive", *["negative"] * (count - 2)]
    positives = int(group.target[0])
    return ["positive"] * positives + ["negative"] * (count - positives)


def pieces_of(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    """The text of a sequence, in pieces of equal weight."""
    weights = np.where(sample.labels >= 0, 1.0 if sample.loss_scale is None else sample.loss_scale, 0.0).tolist()
    marked = zip(sample.input_ids.tolist(), weights, strict=True)
    return [
        _piece([token for token, _ in group], float(weight), tokenizer)
        for weight, group in groupby(marked, key=lambda entry: entry[1])
    ]


def examples(
    items: Iterable[Item], tokenizer: PreTrainedTokenizerBase, count: int, kind: GroupKind | None = None
) -> tuple[tuple[tuple[str, float], ...], ...]:
    """The first sequences as (text, weight) pieces, long ones without their middle: for reports."""
    sequences = islice(sequences_of(items, kind), count)
    return tuple(
        tuple((_shortened(piece.text), piece.weight) for piece in pieces_of(sample, tokenizer))
        for _, sample in sequences
    )


def lines(sample: Sample, tokenizer: PreTrainedTokenizerBase, *, in_color: bool, shows_tokens: bool) -> Iterator[str]:
    """A sequence for display: trained text in color (elsewhere in brackets), or one token per line with its weight."""
    pieces = pieces_of(sample, tokenizer)
    start, end = TRAINED if in_color else PLAIN
    if not shows_tokens:
        yield "".join(f"{start}{piece.text}{end}" if piece.weight else piece.text for piece in pieces)
        return
    ids = iter(sample.input_ids.tolist())
    for piece in pieces:
        for token in piece.tokens:
            shown = f"{start}{token!r}{end}" if piece.weight else repr(token)
            yield f"{next(ids):>8} {piece.weight:>6g} {shown}"


def _piece(tokens: list[int], weight: float, tokenizer: PreTrainedTokenizerBase) -> Piece:
    texts = tuple(str(tokenizer.decode([token])) for token in tokens)
    return Piece(text=str(tokenizer.decode(tokens)), weight=weight, tokens=texts)


def _shortened(text: str) -> str:
    half = MOST_CHARACTERS // 2
    return text if len(text) <= MOST_CHARACTERS else f"{text[:half]} [...] {text[-half:]}"
