"""The tokens of images: each mark becomes the text of one, each image token as many as the image has merged patches.

They carry no loss, and a sequence that is cut keeps whole images only.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_trainer.data.values import Medium, RowError
from megatron_trainer.data.vision.places import MISMATCH
from megatron_trainer.data.vision.rows import MARK
from megatron_trainer.data.vision.settings import VisionSettings

Ids = NDArray[np.int32]
Weights = NDArray[np.float32]


class Shifted:
    """A text in which marks are replaced by other texts, and where its characters are now."""

    def __init__(self, text: str, settings: VisionSettings) -> None:
        pieces, self._edges, self._offsets = [], [0], [0]
        self.numbers: list[int] = []
        position = length = 0
        for found in MARK.finditer(text):
            token = settings.video_token if found[2] == "v" else settings.image_token
            shown = f"{settings.start_token}{token}{settings.end_token}"
            pieces += [text[position : found.start()], shown]
            length += found.start() - position + len(shown)
            position = found.end()
            self.numbers.append(int(found[1]))
            self._edges.append(position)
            self._offsets.append(length - position)
        self.text = "".join([*pieces, text[position:]])

    def place(self, character: int) -> int:
        """The place of a character that is in no mark, or follows one."""
        return character + self._offsets[bisect_right(self._edges, character) - 1]


@dataclass(frozen=True, kw_only=True)
class VisionTokens:
    """Ids of the tokens of images; start, end: those around them, -1 for none. merge: sides of merged patches."""

    image: int
    video: int
    start: int
    end: int
    merge: int

    def expanded(self, ids: Ids, weights: Weights, media: Sequence[Medium]) -> tuple[Ids, Weights]:
        """The tokens with one for each merged patch, without loss.

        Raises RowError if the text itself contains an image token.
        """
        is_image = (ids == self.image) | ((ids == self.video) & (self.video >= 0))
        expected = [self.video if medium.is_video else self.image for medium in media]
        if ids[is_image].tolist() != expected:
            raise RowError(MISMATCH, f"{int(is_image.sum())} tokens of images in the text, {len(media)} images")
        counts = np.ones(len(ids), np.int64)
        counts[is_image] = [self.num_tokens(medium) for medium in media]
        weights = np.where(is_image, np.float32(0), weights)
        return np.repeat(ids, counts), np.repeat(weights, counts)

    def num_tokens(self, medium: Medium) -> int:
        """Tokens of one image."""
        time, rows, columns = medium.grid
        return time * rows * columns // self.merge**2

    def whole(self, ids: Ids, media: Sequence[Medium], kept: slice) -> tuple[slice, tuple[Medium, ...]]:
        """A part of a sequence without the images that it would cut, and the images inside it."""
        start, stop, _ = kept.indices(len(ids))
        spans = self._spans(ids, media)
        for first, last in spans:
            start = last if first < start < last else start
            stop = first if first < stop < last else stop
        inside = [m for m, (first, last) in zip(media, spans, strict=True) if start <= first and last <= stop]
        return slice(start, max(start, stop)), tuple(inside)

    def _spans(self, ids: Ids, media: Sequence[Medium]) -> list[tuple[int, int]]:
        """The tokens [first, last) of each image with those around it."""
        spans, position = [], 0
        for medium in media:
            token = self.video if medium.is_video else self.image
            first = position + int(np.argmax(ids[position:] == token))
            position = last = first + self.num_tokens(medium)
            has_start = first > 0 and ids[first - 1] == self.start
            has_end = last < len(ids) and ids[last] == self.end
            spans.append((first - has_start, last + has_end))
        return spans
