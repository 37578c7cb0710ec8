"""Encoded rows as flat arrays: the form in which worker processes send them and the store appends them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from megatron_trainer.data.encoding.encode import Encoded
from megatron_trainer.data.values import Medium, Rejection


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Consecutive rows of a dataset.

    input_ids: int32, all sequences end to end. weights: the loss weight of each of these tokens, uint8 when every
    weight is 0 or 1, else float32. lengths: int32, tokens of each sequence. numbers: int64, position of each kept row
    in its dataset. channels: of each kept row. num_rows: rows read, rejected ones included.
    notes: remarks about kept rows for the user, with the number of rows. targets: float32 [kept rows, size of a
    target]. media: images and videos of each sequence that has any, by its number in the chunk.
    """

    input_ids: NDArray[np.int32]
    weights: NDArray[np.uint8] | NDArray[np.float32]
    lengths: NDArray[np.int32]
    numbers: NDArray[np.int64]
    channels: list[str | None]
    rejections: list[Rejection]
    num_rows: int
    num_truncated: int
    notes: Mapping[str, int] = field(default_factory=dict)
    targets: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    media: Mapping[int, tuple[Medium, ...]] = field(default_factory=dict)


def to_chunk(results: Sequence[Encoded | Rejection]) -> Chunk:
    """The results of encoding, flattened."""
    kept = [result for result in results if isinstance(result, Encoded)]
    sequences = [ids for row in kept for ids in row.input_ids]
    weights = _joined([part for row in kept for part in row.weights], np.float32)
    is_binary = bool(((weights == 0) | (weights == 1)).all())
    return Chunk(
        input_ids=_joined(sequences, np.int32),
        weights=weights.astype(np.uint8) if is_binary else weights,
        lengths=np.fromiter((len(ids) for ids in sequences), np.int32, len(sequences)),
        numbers=np.fromiter((row.number for row in kept), np.int64, len(kept)),
        channels=[row.channel for row in kept],
        rejections=[result for result in results if isinstance(result, Rejection)],
        num_rows=len(results),
        num_truncated=sum(row.is_truncated for row in kept),
        notes=Counter(note for row in kept for note in row.notes),
        targets=np.array([row.target for row in kept], np.float32).reshape(len(kept), -1 if kept else 0),
        media=_media(kept),
    )


def _media(kept: Sequence[Encoded]) -> dict[int, tuple[Medium, ...]]:
    of_sequences = (media for row in kept for media in row.media_of_sequences)
    return {number: media for number, media in enumerate(of_sequences) if media}


def _joined(parts: Sequence[NDArray[np.generic]], dtype: type[np.generic]) -> NDArray:  # type: ignore[type-arg]
    return np.concatenate(parts) if parts else np.empty(0, dtype)
