"""Images of Llama-4: fitted into a canvas of square tiles, padded behind, and a tile of the whole image behind them.

The numbers are those of transformers' processor, which exists for torchvision alone; nothing but Pillow and torch is
needed here. The image's own aspect ratio is kept, and the canvas is the smallest that scales it least.

Shape suffixes: H height, W width, C channels, P patches, D numbers of a patch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from megatron_trainer.data.values import Pixels
from megatron_trainer.data.vision import video
from megatron_trainer.data.vision.form import Grid

WHOLE = "<|image|>"
"""The text before the tile of the whole image; chat templates write it for an image."""
START, END = "<|image_start|>", "<|image_end|>"
_BESIDE, _BELOW = "<|tile_x_separator|>", "<|tile_y_separator|>"
_MODES: Mapping[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}
"""Numbers of Pillow -> the names that torch has."""
_DEFAULTS: Mapping[str, Any] = {
    "size": {"height": 336, "width": 336},
    "max_patches": 16,
    "resize_to_max_canvas": False,
    "resample": 2,
    "rescale_factor": 1 / 255,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
}
_SWITCHES = ("do_resize", "do_rescale", "do_normalize")


@dataclass(frozen=True, kw_only=True)
class CanvasRules:
    """The settings of the model's image processor, within those of the user.

    side: pixels along each side of a tile. most: tiles of a canvas. fills: images are enlarged to the canvas that takes
    them largest. scale, mean, std: what makes numbers for the model of 0 to 255.
    """

    side: int
    most: int
    fills: bool
    mode: Literal["bilinear", "bicubic"]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


def rules_of(stored: Mapping[str, Any]) -> CanvasRules:
    """The rules of a model's own file. Raises ValueError for settings that are not read."""
    given = {**_DEFAULTS, **{key: value for key, value in stored.items() if value is not None}}
    height, width = given["size"]["height"], given["size"]["width"]
    if height != width:
        raise ValueError(f"its image processor makes tiles of {height} x {width} pixels, which are no squares")
    if given["resample"] not in _MODES:
        raise ValueError(f"resample {given['resample']} is not read; 2 (bilinear) and 3 (bicubic) are")
    if off := [name for name in _SWITCHES if given.get(name) is False]:
        raise ValueError(f"{', '.join(off)} false is not read; the model takes scaled numbers of whole tiles")
    return CanvasRules(
        side=height,
        most=given["max_patches"],
        fills=given["resize_to_max_canvas"],
        mode=_MODES[given["resample"]],
        scale=given["rescale_factor"],
        mean=tuple(given["image_mean"]),
        std=tuple(given["image_std"]),
    )


@lru_cache
def _canvases(most: int) -> list[tuple[int, int]]:
    """(rows, columns) of tiles of every canvas, in the order that decides between equal ones: those of one shape stand
    together, shapes by their largest canvas.
    """
    by_shape: dict[float, list[tuple[int, int]]] = {}
    for tiles in range(most, 0, -1):
        for rows in (number for number in range(1, tiles + 1) if tiles % number == 0):
            columns = tiles // rows
            by_shape.setdefault(rows / columns, []).append((rows, columns))
    return [each for shape in by_shape.values() for each in shape]


def canvas(size: tuple[int, int], rules: CanvasRules) -> tuple[int, int]:
    """(rows, columns) of tiles for an image of this (height, width): the one that enlarges it least, else the one that
    shrinks it least, and of several the smallest. Compared in float32, as transformers does.
    """
    known = np.array(_canvases(rules.most))
    by_height, by_width = ((known[:, side] * rules.side).astype(np.float32) / np.float32(size[side]) for side in (0, 1))
    scales = np.minimum(by_height, by_width)
    larger = scales[scales >= 1]
    best = larger if len(larger) else scales
    chosen = best.min() if len(larger) and not rules.fills else best.max()
    rows, columns = min(known[scales == chosen].tolist(), key=math.prod)
    return rows, columns


def _fitted(size: tuple[int, int], within: tuple[int, int], rules: CanvasRules) -> tuple[int, int]:
    """(height, width) of an image within a canvas of (rows, columns), enlarged to one tile at most unless rules.fills.

    Sides that the canvas bounds divide in float32, as transformers' tensors do, others in float64.
    """
    most = [each * rules.side for each in within]
    wanted = most if rules.fills else [max(own, rules.side) for own in size]
    sides = [min(pair) for pair in zip(wanted, most, strict=True)]
    by_height, by_width = (
        want / own if want <= bound and not rules.fills else np.float32(bound) / np.float32(own)
        for want, bound, own in zip(wanted, most, size, strict=True)
    )
    if by_width < by_height:
        height, width = min(math.floor(size[0] * by_width), sides[0]), sides[1]
    else:
        height, width = sides[0], min(math.floor(size[1] * by_height), sides[1])
    return max(height, 1), max(width, 1)


def text_of(size: tuple[int, int], rules: CanvasRules, patch: str) -> str:
    """The text of an image of this (height, width), with `patch` once for each tile."""
    rows, columns = canvas(size, rules)
    row = _BESIDE.join([patch] * columns) + _BELOW
    return f"{START}{row * rows if rows * columns > 1 else ''}{WHOLE}{patch}{END}"


@dataclass(frozen=True, kw_only=True)
class CanvasForm:
    """See Form. patch_size: along one side of a patch."""

    processor: CanvasRules
    patch_size: int

    @property
    def key(self) -> str:
        """See Form."""
        return f"canvas {self.processor.side} {self.processor.most} {self.processor.fills} {self.processor.mode}"

    def grid(self, size: tuple[int, int]) -> Grid:
        """See Form."""
        tiles = math.prod(canvas(size, self.processor))
        along = self.processor.side // self.patch_size
        return tiles + (tiles > 1), along, along

    def shape(self, grid: Grid) -> tuple[int, int, int]:
        """See Form."""
        return grid[0] * self.processor.side, self.processor.side, 3

    def resized(self, image: Image.Image, grid: Grid) -> NDArray[np.uint8]:
        """See Form."""
        rules, size = self.processor, (image.height, image.width)
        rows, columns = canvas(size, rules)
        whole = np.asarray(image)
        height, width = _fitted(size, (rows, columns), rules)
        padded_HWC = np.zeros((rows * rules.side, columns * rules.side, 3), np.uint8)
        padded_HWC[:height, :width] = video.resized(whole, (height, width), rules.mode)
        cut = padded_HWC.reshape(rows, rules.side, columns, rules.side, 3).swapaxes(1, 2)
        tiles = cut.reshape(-1, rules.side, 3)
        if grid[0] > 1:
            tiles = np.concatenate([tiles, video.resized(whole, (rules.side, rules.side), rules.mode)])
        return tiles

    def pixels(self, resized: Sequence[NDArray[np.uint8]], grids: Sequence[Grid]) -> Pixels:
        """See Form."""
        side = self.processor.side
        tiles = np.concatenate(resized).reshape(-1, side, side, 3)
        values = np.stack([_table(self.processor)[channel][tiles[..., channel]] for channel in range(3)], axis=1)
        return Pixels(values_PD=values.reshape(-1, 3 * self.patch_size**2), grid_N3=np.array(grids, dtype=np.int64))


@lru_cache
def _table(rules: CanvasRules) -> NDArray[np.float32]:
    """The number of each of 0 to 255 in each channel, [C, 256]: in bfloat16, as the model was trained."""
    import torch  # not for processes that encode text

    scaled = torch.arange(256).to(torch.bfloat16) * rules.scale
    mean, std = (torch.tensor(each, dtype=torch.bfloat16)[:, None] for each in (rules.mean, rules.std))
    found: NDArray[np.float32] = ((scaled - mean) / std).float().numpy()
    return found
