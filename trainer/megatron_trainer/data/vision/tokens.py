"""The tokens of images: each mark becomes the text of one, each image token as many as the image has merged patches.

They carry no loss, nor does the text around them that stands for an image, such as the time of a frame. A sequence that
is cut keeps whole images and videos only.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_trainer.data.values import Medium, RowError
from megatron_trainer.data.vision import canvas
from megatron_trainer.data.vision.places import MISMATCH
from megatron_trainer.data.vision.rows import MARK
from megatron_trainer.data.vision.settings import VisionSettings

UNREAD = "a text has a token for what is not read"
Ids = NDArray[np.int32]
Weights = NDArray[np.float32]


class Shifted:
    """A text in which marks are replaced by other texts, and where its characters are now.

    media: of the row, which marks name by number.
    """

    def __init__(self, text: str, settings: VisionSettings, media: Sequence[Medium]) -> None:
        pieces, self._edges, self._offsets = [], [0], [0]
        self._marks: list[tuple[int, int]] = []
        self.numbers: list[int] = []
        position = length = 0
        for found in MARK.finditer(text):
            shown = _shown(media[int(found[1])], settings)
            pieces += [text[position : found.start()], shown]
            length += found.start() - position + len(shown)
            position = found.end()
            self.numbers.append(int(found[1]))
            self._marks.append(found.span())
            self._edges.append(position)
            self._offsets.append(length - position)
        self.text = "".join([*pieces, text[position:]])

    def places(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Where the parts of [start, end) are now that are in no mark."""
        for first, last in self._marks:
            if start < last and first < end:
                if start < first:
                    yield self._place(start), self._place(first)
                start = last
        if start < end:
            yield self._place(start), self._place(end)

    def _place(self, character: int) -> int:
        """The place of a character that is in no mark, or follows one."""
        return character + self._offsets[bisect_right(self._edges, character) - 1]


def _shown(medium: Medium, settings: VisionSettings) -> str:
    """The text of an image or a video; where frames stand alone, each has the tokens around it, and its time or number
    before it.
    """
    start, end = settings.start_token, settings.end_token
    if medium.is_video and settings.numbers_frames:
        frames = range(1, medium.grid[0] + 1)
        shown = (f"{number_of_frame(each)}{start}{settings.video_token}{end}" for each in frames)
        return "\n".join(shown) + settings.behind
    if settings.canvas is not None:
        return canvas.text_of(medium.size, settings.canvas, settings.image_token) + settings.behind
    inside = settings.video_token if medium.is_video else settings.image_token
    if medium.is_video and settings.separates_frames:
        inside = "".join(f"<{time:.1f} seconds>{start}{inside}{end}" for time in medium.times)
    return f"{settings.before}{start}{inside}{end}{settings.behind}"


def number_of_frame(number: int) -> str:
    """The text in front of a frame that has a number."""
    return f"Frame{number}: "


@dataclass(frozen=True, kw_only=True)
class VisionTokens:
    """Ids of the tokens of images; start, end: those around them, -1 for none. merge: sides of merged patches.

    separates_frames: each step of a video stands alone between texts. leads: what may stand before the first of them
    where they have numbers, the longest first. unread: tokens that stand for what is not read, such as sound.
    separates_tiles: so does each tile of an image. lead: the token before its last one, -1 for none.
    """

    image: int
    video: int
    start: int
    end: int
    merge: int
    separates_frames: bool = False
    leads: tuple[tuple[int, ...], ...] = ()
    unread: tuple[int, ...] = ()
    separates_tiles: bool = False
    lead: int = -1

    def expanded(self, ids: Ids, weights: Weights, media: Sequence[Medium]) -> tuple[Ids, Weights]:
        """The tokens with one for each merged patch, without loss.

        Raises RowError if the text itself contains an image token, or one for what is not read.
        """
        if self.unread and np.isin(ids, self.unread).any():
            raise RowError(UNREAD, "the text has the token of a video or of sound; take it out")
        is_image = (ids == self.image) | ((ids == self.video) & (self.video >= 0))
        blocks = [block for medium in media for block in self.blocks(medium)]
        expected = [token for token, _ in blocks]
        if ids[is_image].tolist() != expected:
            raise RowError(MISMATCH, f"{int(is_image.sum())} tokens of images in the text, {len(expected)} expected")
        if self.lead >= 0 and (found := int((ids == self.lead).sum())) != len(media):
            raise RowError(MISMATCH, f"{found} tokens stand before a whole image, {len(media)} expected")
        counts = np.ones(len(ids), np.int64)
        counts[is_image] = [count for _, count in blocks]
        weights = np.where(is_image, np.float32(0), weights)
        return np.repeat(ids, counts), np.repeat(weights, counts)

    def blocks(self, medium: Medium) -> list[tuple[int, int]]:
        """The token that stands for a medium and how often it follows itself, once for each part that stands alone."""
        token = self.video if medium.is_video else self.image
        is_apart = self.separates_frames if medium.is_video else self.separates_tiles
        parts = medium.grid[0] if is_apart else 1
        return [(token, self.num_tokens(medium) // parts)] * parts

    def num_tokens(self, medium: Medium) -> int:
        """Tokens of one image or video."""
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
        """The tokens [first, last) of each image or video with those around it."""
        spans, position = [], 0
        for medium in media:
            firsts = []
            for token, count in self.blocks(medium):
                firsts.append(position + int(np.argmax(ids[position:] == token)))
                position = firsts[-1] + count
            first, last = self._around(ids, firsts[0], position)
            if medium.is_video and self.leads:
                first -= self._len_of_lead(ids, first)
            elif medium.is_video and self.separates_frames:
                first, last = self._around(ids, self._before_time(ids, first), last)
            spans.append((first, last))
        return spans

    def _around(self, ids: Ids, first: int, last: int) -> tuple[int, int]:
        """The tokens [first, last) with those around them."""
        has_start = first > 0 and ids[first - 1] == self.start
        has_end = last < len(ids) and ids[last] == self.end
        return first - has_start, last + has_end

    def _len_of_lead(self, ids: Ids, first: int) -> int:
        """The number of tokens of the text that numbers the first frame."""
        sizes = (len(lead) for lead in self.leads if tuple(ids[max(first - len(lead), 0) : first].tolist()) == lead)
        return next(sizes, 0)

    def _before_time(self, ids: Ids, first: int) -> int:
        """The first token of the time that stands before a video's first step."""
        starts = np.flatnonzero(ids[:first] == self.start)
        return int(starts[-1]) + 1 if len(starts) else first
