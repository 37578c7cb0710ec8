"""Writes the objects of a row into its text: <ref-object> is the next name, <bbox> the next box.

objects: {"ref": [...], "bbox": [[x1, y1, x2, y2], ...], "bbox_type": "real" (pixels of the stored image, the default)
or "norm1" (fractions of its sides), "image_id": the image of each box, from 0 and 0 if null}. A point is a box of two
numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from megatron_trainer.data.conversation.messages import is_missing
from megatron_trainer.data.values import Medium, Message, RowError

REF, BOX = "<ref-object>", "<bbox>"
MISMATCH = "objects and their places do not match"
INVALID = "a box is invalid"
OUTSIDE = "a box reaches beyond its image"
REVERSED = "a box ends left of or above its beginning; boxes are two corners, not a corner and a size"
_KEYS = ("ref", "bbox", "bbox_type", "image_id")
_PLACES = re.compile(f"{REF}|{BOX}")
_THOUSAND = 1000

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Marks:
    """The texts around a name and around a box, as the model writes them, of a point and between two of them."""

    before_ref: str = ""
    after_ref: str = ""
    before_box: str = "["
    after_box: str = "]"
    point: str = "({x},{y})"
    between: str = ","


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """The objects of one row. images: those that image_id counts, measured. scale: as of VisionSettings.boxes."""

    objects: Mapping[str, object]
    images: Sequence[Medium]
    scale: Literal["norm1000", "none"]
    patch_size: int
    marks: Marks = field(default_factory=Marks)

    def written(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """The messages with names and boxes at their places.

        Raises RowError when there are more places than objects, or a box is invalid.
        """
        if not self.objects:
            return messages
        refs = [f"{self.marks.before_ref}{_name(ref)}{self.marks.after_ref}" for ref in self._list("ref")]
        waiting = {REF: iter(refs), BOX: iter([self._text(box, image) for box, image in self._boxes()])}

        def next_of(match: re.Match[str]) -> str:
            text = next(waiting[match[0]], None)
            if text is None:
                raise RowError(MISMATCH, f"more {match[0]} than objects")
            return text

        return tuple(replace(message, content=_PLACES.sub(next_of, message.content)) for message in messages)

    def notes(self, texts: Iterable[str]) -> Iterator[str]:
        """What is odd about the objects, with the same words for all rows. texts: with the places, before written."""
        yield from (f"nothing reads {key} of objects" for key in self.objects if key not in _KEYS)
        found = [place for text in texts for place in _PLACES.findall(text)]
        for place, name in ((REF, "ref"), (BOX, "bbox")):
            count = len(self._list(name) if name == "ref" else self._boxes())
            if count > found.count(place):
                yield f"a row has more objects.{name} than places {place}; the last ones are left out"
        for box, image in self._boxes():
            height, width = self._sides(image)
            if any(not 0 <= x <= width or not 0 <= y <= height for x, y in box):
                yield OUTSIDE
            if len(box) == 2 and (box[1][0] < box[0][0] or box[1][1] < box[0][1]):
                yield REVERSED

    def _list(self, name: str) -> list[object]:
        value = self.objects.get(name)
        if value is None:
            return []
        return list(value) if isinstance(value, list | tuple) else [value]

    def _boxes(self) -> list[tuple[list[Point], Medium]]:
        """The points of each box, and its image."""
        kind = self.objects.get("bbox_type") or "real"
        if kind not in ("real", "norm1"):
            raise RowError(INVALID, f"bbox_type is {kind!r}, neither real nor norm1")
        boxes, of_images = self._list("bbox"), self._list("image_id")
        boxes = [boxes] if boxes and not any(isinstance(box, list | tuple) for box in boxes) else boxes
        of_images += [0] * (len(boxes) - len(of_images))
        return [(_points(box), self._image(number)) for box, number in zip(boxes, of_images, strict=False)]

    def _image(self, number: object) -> Medium:
        """The image of a box: the first if it names none. Tables write whole numbers beside nulls as 1.0."""
        place = 0 if is_missing(number) else number
        if isinstance(place, float) and place.is_integer():
            place = int(place)
        if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < len(self.images):
            raise RowError(INVALID, f"image_id is {number!r}, and the row has {len(self.images)} images")
        return self.images[place]

    def _sides(self, image: Medium) -> tuple[int, int]:
        """(height, width) of the whole image in the unit of the row's coordinates."""
        return (1, 1) if self.objects.get("bbox_type") == "norm1" else image.size

    def _text(self, box: Sequence[Point], image: Medium) -> str:
        height, width = self._sides(image)
        sides = (_THOUSAND, _THOUSAND)
        if self.scale == "none":
            sides = image.grid[2] * self.patch_size, image.grid[1] * self.patch_size
        points = [
            self.marks.point.format(x=round(x / width * sides[0]), y=round(y / height * sides[1])) for x, y in box
        ]
        return f"{self.marks.before_box}{self.marks.between.join(points)}{self.marks.after_box}"


def _name(ref: object) -> str:
    if not isinstance(ref, str | int | float) or isinstance(ref, bool) or is_missing(ref):
        raise RowError(INVALID, f"objects.ref holds {str(ref)[:80]}, which is no name")
    return str(ref)


def _points(box: object) -> list[Point]:
    if not isinstance(box, list | tuple) or len(box) % 2 or not box:
        raise RowError(INVALID, f"{str(box)[:80]} is not a list of pairs of numbers")
    return [(_coordinate(x), _coordinate(y)) for x, y in zip(box[::2], box[1::2], strict=True)]


def _coordinate(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e9:
        raise RowError(INVALID, f"{value!r} is no coordinate")
    return value
