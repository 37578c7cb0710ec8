"""The pixels of a sample, in the form that vision towers of transformers take. No I/O.

Shape suffixes: P patches of all images, D numbers of a patch (channels x temporal x patch x patch), N images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Images (or videos) in the order in which the token ids name them, exactly as transformers' processor makes them.

    values_PD: float32, the patches of all images, one image after the other. grid_N3: int64, patches of each image
    along (time, height, width); their product is its number of patches.
    """

    values_PD: NDArray[np.float32]
    grid_N3: NDArray[np.int64]


def joined(parts: Sequence[Pixels]) -> Pixels | None:
    """The images of all parts in order, None if there are none."""
    if not parts:
        return None
    return Pixels(
        values_PD=np.concatenate([part.values_PD for part in parts]),
        grid_N3=np.concatenate([part.grid_N3 for part in parts]),
    )


Source = str | bytes
"""The file of an image: its absolute path, or its bytes as they were in the row or behind a URL."""


@dataclass(frozen=True, kw_only=True)
class Medium:
    """An image or a video of a sequence, in the order of their tokens.

    sources: the file of the image, or those of a video's frames. size: (height, width) in pixels, as stored. grid:
    patches along (time, height, width) once it is resized for the model.
    """

    sources: tuple[Source, ...]
    size: tuple[int, int]
    grid: tuple[int, int, int]
    is_video: bool = False


@dataclass(frozen=True, kw_only=True)
class VisionSettings:
    """Everything besides the files that determines the tokens of images.

    processor: the settings of the model's image processor. image_token, video_token: texts that the tokenizer turns
    into the one token that stands for a patch of them. start_token, end_token: texts around them, "" for none.
    boxes: whether coordinates are in thousandths of the image or in pixels of the resized one. root: folder of relative
    paths; None is that of the data file. video: as processor, None if videos are not read.
    """

    processor: Mapping[str, object]
    image_token: str
    start_token: str = ""
    end_token: str = ""
    video_token: str = ""
    video: Mapping[str, object] | None = None
    boxes: Literal["norm1000", "none"] = "norm1000"
    root: str | None = None
