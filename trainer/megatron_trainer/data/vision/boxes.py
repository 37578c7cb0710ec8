"""Writes the objects of a row into its text: <ref-object> is the next name, <bbox> the next box.

objects: {"ref": [...], "bbox": [[x1, y1, x2, y2], ...], "bbox_type": "real" (pixels of the stored image, the default)
or "norm1" (fractions of its sides), "image_id": the image of each box, from 0}. A point is a box of two numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from megatron_trainer.data.values import Medium, Message, RowError

REF, BOX = "<ref-object>", "<bbox>"
MISMATCH = "objects and their places do not match"
INVALID = "a box is invalid"
_PLACES = re.compile(f"{REF}|{BOX}")
_THOUSAND = 1000


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
        refs = [f"{self.marks.before_ref}{ref}{self.marks.after_ref}" for ref in self._list("ref")]
        waiting = {REF: iter(refs), BOX: iter(self._boxes())}

        def next_of(match: re.Match[str]) -> str:
            text = next(waiting[match[0]], None)
            if text is None:
                raise RowError(MISMATCH, f"more {match[0]} than objects")
            return text

        return tuple(replace(message, content=_PLACES.sub(next_of, message.content)) for message in messages)

    def _list(self, name: str) -> list[object]:
        value = self.objects.get(name)
        if value is None:
            return []
        return list(value) if isinstance(value, list | tuple) else [value]

    def _boxes(self) -> list[str]:
        kind = self.objects.get("bbox_type") or "real"
        if kind not in ("real", "norm1"):
            raise RowError(INVALID, f"bbox_type is {kind!r}, neither real nor norm1")
        boxes, of_images = self._list("bbox"), self._list("image_id")
        of_images += [0] * (len(boxes) - len(of_images))
        return [self._text(box, self._image(number), str(kind)) for box, number in zip(boxes, of_images, strict=False)]

    def _image(self, number: object) -> Medium:
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < len(self.images):
            raise RowError(INVALID, f"image_id is {number!r}, and the row has {len(self.images)} images")
        return self.images[number]

    def _text(self, box: object, image: Medium, kind: str) -> str:
        if not isinstance(box, list | tuple) or len(box) % 2 or not box:
            raise RowError(INVALID, f"{str(box)[:80]} is not a list of pairs of numbers")
        height, width = (1, 1) if kind == "norm1" else image.size
        sides = (_THOUSAND, _THOUSAND)
        if self.scale == "none":
            sides = image.grid[2] * self.patch_size, image.grid[1] * self.patch_size
        points = [
            self.marks.point.format(x=_scaled(x, width, sides[0]), y=_scaled(y, height, sides[1]))
            for x, y in zip(box[::2], box[1::2], strict=True)
        ]
        return f"{self.marks.before_box}{self.marks.between.join(points)}{self.marks.after_box}"


def _scaled(value: object, from_side: int, to_side: int) -> int:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e9:
        raise RowError(INVALID, f"{value!r} is no coordinate")
    return round(value / from_side * to_side)
