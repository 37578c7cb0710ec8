"""How the images of a model become tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from megatron_trainer.data.vision.canvas import CanvasRules


@dataclass(frozen=True, kw_only=True)
class VisionSettings:
    """Everything besides the files that determines the tokens of images.

    processor: the settings of the model's image processor. image_token, video_token: texts that the tokenizer turns
    into the one token that stands for a patch of them. start_token, end_token: texts around them, "" for none.
    boxes: whether coordinates are in thousandths of the image or in pixels of the resized one. box_format: of
    pixels.BOX_FORMATS. root: folder of relative
    paths; None is that of the data file. video: the rules of its frames, None if videos are not read. separates_frames:
    each step of a video has the tokens around it, and before it its time or, with numbers_frames, its number.
    before, behind: text that the template writes before and behind an image or a video. trims: it takes the white space
    off the texts around one. longest_side: patches along a side that an image may have, 0 for any number. canvas: how
    images lie in tiles, where tokens tell; else None.
    """

    processor: Mapping[str, object]
    image_token: str
    start_token: str = ""
    end_token: str = ""
    video_token: str = ""
    video: Mapping[str, object] | None = None
    boxes: Literal["norm1000", "none"] = "norm1000"
    box_format: str = "legacy"
    root: str | None = None
    separates_frames: bool = False
    numbers_frames: bool = False
    before: str = ""
    behind: str = ""
    trims: bool = False
    longest_side: int = 0
    canvas: CanvasRules | None = None
