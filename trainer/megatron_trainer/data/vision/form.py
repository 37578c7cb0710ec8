"""What a model's image processor makes of an image: its size for the model, and the pixels of that.

Three forms: an image of any size in patches, an image cut into square tiles of one size with a smaller one of the
whole behind them, and an image scaled to a number of tokens. All use transformers' own processor without torchvision.

Shape suffixes: H height, W width, C channels, P patches, D numbers of a patch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from megatron_trainer.data.values import Pixels, RowError

TOO_NARROW = "an image is too narrow for the model"

Grid = tuple[int, int, int]
"""Patches along (time, height, width); of an image in tiles, its tiles and the patches along their sides."""


class Form(Protocol):
    """How one model takes images. Picklable."""

    @property
    def key(self) -> str:
        """What besides the image and its grid determines the resized one."""

    def grid(self, size: tuple[int, int]) -> Grid:
        """That of an image of this (height, width). Raises RowError for one that the model cannot take."""

    def shape(self, grid: Grid) -> tuple[int, int, int]:
        """Of the resized image: (height, width, 3)."""

    def resized(self, image: Image.Image, grid: Grid) -> NDArray[np.uint8]:
        """[H, W, 3]; tiles stand one below the other."""

    def pixels(self, resized: Sequence[NDArray[np.uint8]], grids: Sequence[Grid]) -> Pixels:
        """Those of resized images."""


def size_rule(processor: Any) -> Callable[..., tuple[int, int]] | None:  # noqa: ANN401 - of transformers
    """The function that gives an image its size among the patches of such a processor; None for one of another form."""
    found: Callable[..., tuple[int, int]] | None = getattr(
        sys.modules[type(processor).__module__], "smart_resize", None
    )
    return found


@dataclass(frozen=True, kw_only=True)
class PatchForm:
    """Images of any size. processor: with `patch_size` and `resample`, and a size_rule."""

    processor: Any

    @property
    def patch_size(self) -> int:
        """Pixels along one side of a patch."""
        return int(self.processor.patch_size)

    @property
    def key(self) -> str:
        """See Form."""
        return f"{self.processor.patch_size} {self.processor.resample}"

    def grid(self, size: tuple[int, int]) -> Grid:
        """See Form. From the processor's own rule for sizes: it resizes no pixels."""
        try:
            height, width = self._resized_size(*size)
        except ValueError as err:
            raise RowError(TOO_NARROW, f"{size[1]} x {size[0]} pixels: {err}") from err
        return 1, height // self.patch_size, width // self.patch_size

    def _resized_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of an image once it is resized. Raises ValueError for one that cannot be."""
        factor = self.processor.patch_size * self.processor.merge_size
        if not self.processor.do_resize:
            if height % factor or width % factor:
                raise ValueError(f"its sides are no multiples of {factor}, and do_resize of the processor is false")
            return height, width
        rule, frames = size_rule(self.processor), self.processor.temporal_patch_size
        assert rule is not None
        counts_frames = "num_frames" in signature(rule).parameters  # an image is repeated to fill a step in time
        of_frames = {"num_frames": frames, "temporal_factor": frames} if counts_frames else {}
        bounds = {"min_pixels": self.processor.size.shortest_edge, "max_pixels": self.processor.size.longest_edge}
        return rule(height=height, width=width, factor=factor, **bounds, **of_frames)

    def shape(self, grid: Grid) -> tuple[int, int, int]:
        """See Form."""
        return grid[1] * self.processor.patch_size, grid[2] * self.processor.patch_size, 3

    def resized(self, image: Image.Image, grid: Grid) -> NDArray[np.uint8]:
        """See Form."""
        height, width, _ = self.shape(grid)
        return np.asarray(image.resize((width, height), resample=self.processor.resample), dtype=np.uint8)

    def pixels(self, resized: Sequence[NDArray[np.uint8]], grids: Sequence[Grid]) -> Pixels:
        """See Form."""
        del grids  # the processor finds them
        images = list(resized)
        made = self.processor(images=images, do_resize=False, input_data_format="channels_last", return_tensors="np")
        values = np.ascontiguousarray(made["pixel_values"], dtype=np.float32)
        return Pixels(values_PD=values, grid_N3=np.asarray(made["image_grid_thw"], dtype=np.int64))


@dataclass(frozen=True, kw_only=True)
class TileForm:
    """Images in tiles. processor: with `min_patches`, `max_patches` (tiles) and `size`. side: pixels along one side of
    a tile. patch_size: along one side of a patch.
    """

    processor: Any
    side: int
    patch_size: int

    @property
    def key(self) -> str:
        """See Form."""
        return f"tiles {self.side} {self.processor.min_patches} {self.processor.max_patches} {self.processor.resample}"

    def grid(self, size: tuple[int, int]) -> Grid:
        """See Form."""
        tiles = self.processor.get_number_of_image_patches(*size, {"crop_to_patches": True})
        along = self.side // self.patch_size
        return int(tiles), along, along

    def shape(self, grid: Grid) -> tuple[int, int, int]:
        """See Form."""
        return grid[0] * self.side, self.side, 3

    def resized(self, image: Image.Image, grid: Grid) -> NDArray[np.uint8]:
        """See Form."""
        tiles = self.processor.crop_image_to_patches(
            np.asarray(image).transpose(2, 0, 1),
            self.processor.min_patches,
            self.processor.max_patches,
            patch_size=self.processor.size,
            resample=self.processor.resample,
        )
        if len(tiles) != grid[0]:
            raise ValueError(f"{len(tiles)} tiles instead of {grid[0]}")
        return np.concatenate([np.asarray(tile, dtype=np.uint8).transpose(1, 2, 0) for tile in tiles])

    def pixels(self, resized: Sequence[NDArray[np.uint8]], grids: Sequence[Grid]) -> Pixels:
        """See Form."""
        tiles = list(np.concatenate(resized).reshape(-1, self.side, self.side, 3))
        made = self.processor(
            images=tiles,
            crop_to_patches=False,
            do_resize=False,
            input_data_format="channels_last",
            return_tensors="np",
        )
        values = np.ascontiguousarray(made["pixel_values"], dtype=np.float32)
        patches = values.reshape(-1, 3 * self.patch_size**2)
        return Pixels(values_PD=patches, grid_N3=np.array(grids, dtype=np.int64))


@dataclass(frozen=True, kw_only=True)
class ScaledForm(PatchForm):
    """Images scaled, up or down, to at most so many tokens. processor: also with `max_soft_tokens` and
    `pooling_kernel_size` (sides of the patches of a token). longest_side: patches along a side for which the tower has
    positions.
    """

    longest_side: int

    @property
    def key(self) -> str:
        """See Form."""
        return f"scaled {self.processor.resample}"

    def grid(self, size: tuple[int, int]) -> Grid:
        """See Form."""
        from transformers.models.gemma4.image_processing_pil_gemma4 import get_aspect_ratio_preserving_size

        patch, side = self.processor.patch_size, self.processor.pooling_kernel_size
        try:
            height, width = get_aspect_ratio_preserving_size(
                *size, patch_size=patch, max_patches=self.processor.max_soft_tokens * side**2, pooling_kernel_size=side
            )
        except ValueError as err:
            raise RowError(TOO_NARROW, f"{size[1]} x {size[0]} pixels: {err}") from err
        rows, columns = height // patch, width // patch
        if max(rows, columns) > self.longest_side:
            became = f"{columns} x {rows} patches, and the tower has positions for {self.longest_side} along a side"
            raise RowError(TOO_NARROW, f"{size[1]} x {size[0]} pixels become {became}")
        return 1, rows, columns

    def pixels(self, resized: Sequence[NDArray[np.uint8]], grids: Sequence[Grid]) -> Pixels:
        """See Form. The processor pads the patches of each image to the most that there may be."""
        made = self.processor(
            images=list(resized), do_resize=False, input_data_format="channels_last", return_tensors="np"
        )
        parts = [row[: rows * columns] for row, (_, rows, columns) in zip(made["pixel_values"], grids, strict=True)]
        values = np.ascontiguousarray(np.concatenate(parts), dtype=np.float32)
        return Pixels(values_PD=values, grid_N3=np.array(grids, dtype=np.int64))
