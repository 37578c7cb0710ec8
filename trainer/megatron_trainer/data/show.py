"""Shows rows as they are trained: text split where the loss weight changes, for terminals, logs and reports."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np
from transformers import PreTrainedTokenizerBase

from megatron_trainer.data.collate import split
from megatron_trainer.data.values import Item, Medium, RowError, Sample
from megatron_trainer.data.vision.pixels import ImageReader
from megatron_trainer.data.vision.tokens import VisionTokens
from megatron_trainjob.args.head import GroupKind

MOST_CHARACTERS = 1_000
"""Maximum characters of a piece in a report; the middle is left out."""
MOST_THUMBNAILS, THUMBNAIL_PIXELS = 8, 96
"""Pictures of one sequence in a report, and the longer side of each."""
TRAINED, PLAIN = ("\x1b[1;32m", "\x1b[0m"), ("\u27e6", "\u27e7")
"""Markers around trained text, in a terminal and elsewhere."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Consecutive tokens of equal weight, 0 if they are not trained; of an image, one text stands for num_tokens."""

    text: str
    weight: float
    tokens: tuple[str, ...]
    num_tokens: int = 0


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


def pieces_of(sample: Sample, tokenizer: PreTrainedTokenizerBase, vision: VisionTokens | None = None) -> list[Piece]:
    """The text of a sequence, in pieces of equal weight; an image is a piece that says its size.

    vision: the tokens of images, None for a text model.
    """
    weights = np.where(sample.labels >= 0, 1.0 if sample.loss_scale is None else sample.loss_scale, 0.0).tolist()
    images = _images(sample, vision)
    marked = zip(sample.input_ids.tolist(), weights, images, strict=True)
    shown = [] if vision is None else [piece for medium in sample.media for piece in _image_pieces(medium, vision)]
    return [
        _piece([token for token, _, _ in group], float(weight), tokenizer)
        if image < 0 or vision is None
        else shown[image]
        for (weight, image), group in groupby(marked, key=lambda entry: entry[1:])
    ]


def _images(sample: Sample, vision: VisionTokens | None) -> list[int]:
    """For each token the number of its image, or of the part of a video that stands alone, -1 for text."""
    numbers = np.full(sample.length, -1)
    if vision is not None and sample.media:
        counts = [count for medium in sample.media for _, count in vision.blocks(medium)]
        is_image = np.isin(sample.input_ids, (vision.image, vision.video))
        numbers[is_image] = np.repeat(np.arange(len(counts)), counts)
    found: list[int] = numbers.tolist()
    return found


def _image_pieces(medium: Medium, vision: VisionTokens) -> list[Piece]:
    """One for an image; one for a video, or for each of its steps where they stand alone."""
    height, width = medium.size
    blocks, frames = vision.blocks(medium), len(medium.sources)
    what = f"video of {frames} frames," if medium.is_video else "image"
    pieces = []
    for number, (_, count) in enumerate(blocks, start=1):
        part = f" part {number} of {len(blocks)}," if len(blocks) > 1 else ""
        text = f"[{what}{part} {width} x {height}, {count} tokens]"
        pieces.append(Piece(text=text, weight=0.0, tokens=(text,), num_tokens=count))
    return pieces


def examples(
    items: Iterable[Item],
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    kind: GroupKind | None = None,
    vision: VisionTokens | None = None,
) -> tuple[tuple[tuple[str, float], ...], ...]:
    """The first sequences as (text, weight) pieces, long ones without their middle: for reports."""
    sequences = islice(sequences_of(items, kind), count)
    return tuple(
        tuple((_shortened(piece.text), piece.weight) for piece in pieces_of(sample, tokenizer, vision))
        for _, sample in sequences
    )


def thumbnails(items: Iterable[Item], count: int, reader: ImageReader) -> tuple[tuple[str, ...], ...]:
    """Small pictures of the images of the first sequences, as data URIs, for reports."""
    return tuple(
        tuple(_thumbnail(medium, reader) for medium in sample.media[:MOST_THUMBNAILS])
        for _, sample in islice(sequences_of(items), count)
    )


def _thumbnail(medium: Medium, reader: ImageReader) -> str:
    stream = io.BytesIO()
    try:
        reader.thumbnail(medium, THUMBNAIL_PIXELS).save(stream, "JPEG", quality=70)
    except RowError:  # gone since it was tokenized: training says so
        return ""
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def lines(
    sample: Sample,
    tokenizer: PreTrainedTokenizerBase,
    *,
    in_color: bool,
    shows_tokens: bool,
    vision: VisionTokens | None = None,
) -> Iterator[str]:
    """A sequence for display: trained text in color (elsewhere in brackets), or one token per line with its weight."""
    pieces = pieces_of(sample, tokenizer, vision)
    start, end = TRAINED if in_color else PLAIN
    if not shows_tokens:
        yield "".join(f"{start}{piece.text}{end}" if piece.weight else piece.text for piece in pieces)
        return
    ids = iter(sample.input_ids.tolist())
    for piece in pieces:
        if piece.num_tokens:
            first, *_ = islice(ids, piece.num_tokens)
            yield f"{first:>8} {piece.weight:>6g} {piece.text}"
            continue
        for token in piece.tokens:
            shown = f"{start}{token!r}{end}" if piece.weight else repr(token)
            yield f"{next(ids):>8} {piece.weight:>6g} {shown}"


def _piece(tokens: list[int], weight: float, tokenizer: PreTrainedTokenizerBase) -> Piece:
    texts = tuple(str(tokenizer.decode([token])) for token in tokens)
    return Piece(text=str(tokenizer.decode(tokens)), weight=weight, tokens=texts)


def _shortened(text: str) -> str:
    half = MOST_CHARACTERS // 2
    return text if len(text) <= MOST_CHARACTERS else f"{text[:half]} [...] {text[-half:]}"
