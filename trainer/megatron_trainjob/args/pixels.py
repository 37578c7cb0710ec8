"""The settings of images and videos in model_kwargs; other programs take them from environment variables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

OF_IMAGES: Mapping[str, str] = {"image_max_token_num": "max_pixels", "image_min_token_num": "min_pixels"}
OF_VIDEOS: Mapping[str, str] = {"video_max_token_num": "video_max_pixels", "video_min_token_num": "video_min_pixels"}
TOKENS: Mapping[str, str] = {**OF_IMAGES, **OF_VIDEOS}
"""Settings that count tokens of an image or of a frame -> the same in pixels."""
FPS = "fps"
TILES: Mapping[str, str] = {"max_num": "max_pixels", "min_num": "min_pixels"}
"""Settings that count the tiles of an image, of models that cut images into squares -> what bounds the same."""
BOXES = "qwenvl_bbox_format"
BOX_FORMATS = ("legacy", "new")
"""How models of Qwen write boxes: between their own tokens, or as lists of numbers in plain text."""
NAMES = (
    *("max_pixels", "min_pixels", "video_max_pixels", "video_min_pixels", *TOKENS, *TILES),
    *(FPS, "fps_min_frames", "fps_max_frames", BOXES),
)

BUDGETS = (70, 140, 280, 560, 1120)
"""Numbers of tokens to which models that scale images can scale them."""

UNREAD = (
    *("INPUT_SIZE", "VIDEO_MAX_NUM", "VIDEO_SEGMENTS", "VIDEO_TOTAL_PIXELS", "NFRAMES"),
    *("MAX_RATIO", "IMAGE_FACTOR", "FRAME_FACTOR", "SPATIAL_MERGE_SIZE"),
    *("MAX_SLICE_NUMS", "VIDEO_MAX_SLICE_NUMS", "MAX_NUM_FRAMES", "USE_AUDIO_IN_VIDEO"),
)
"""Environment variables of other programs for which there is no setting."""
VARIABLES: Mapping[str, str] = {name.upper(): name for name in NAMES}
"""Environment variables of other programs -> the settings, which this trainer does not read from there."""


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """How many tiles an image may have, the smaller one of the whole image not counted; None for the model's own."""

    least: int | None
    most: int | None


class Given(Protocol):
    """The arguments that are read here."""

    @property
    def model_kwargs(self) -> Mapping[str, Any] | None: ...

    @property
    def max_pixels(self) -> int | None: ...

    @property
    def min_pixels(self) -> int | None: ...


def settings(args: Given) -> dict[str, float]:
    """The numbers in model_kwargs by their names in lower case, without those that are invalid."""
    lowered = {str(name).lower(): value for name, value in (args.model_kwargs or {}).items()}
    found = {name: number_of(name, value) for name, value in lowered.items() if name in NAMES}
    return {name: value for name, value in found.items() if value is not None}


def number_of(name: str, value: object) -> float | None:
    """A positive number, also written as text, whole unless it is a rate; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    if not 0 < number < 2**53:
        return None
    if name == FPS:
        return number
    return int(number) if number == int(number) else None


def value_of(name: str, value: object) -> float | str | None:
    """What a setting is set to; None for a value that it cannot have."""
    if name != BOXES:
        return number_of(name, value)
    return value.lower() if isinstance(value, str) and value.lower() in BOX_FORMATS else None


def box_format(args: Given) -> str:
    """How boxes are written."""
    given = next((value for name, value in (args.model_kwargs or {}).items() if str(name).lower() == BOXES), None)
    return str(value_of(BOXES, given) or BOX_FORMATS[0])


def in_pixels(args: Given, token_side: int) -> dict[str, Any]:
    """All settings with sizes in pixels; the arguments max_pixels and min_pixels are among them.

    token_side: pixels along one side of a token.
    """
    found: dict[str, Any] = {}
    for name, value in settings(args).items():
        found[TOKENS.get(name, name)] = value * token_side**2 if name in TOKENS else value
    own = {"max_pixels": args.max_pixels, "min_pixels": args.min_pixels}
    return found | {name: value for name, value in own.items() if value is not None}


def tiles(given: Mapping[str, Any], side: int) -> Tiles:
    """The number of tiles that settings in pixels (`in_pixels`) allow. side: pixels along one side of a tile."""
    least, most = given.get("min_num"), given.get("max_num")
    if "max_pixels" in given:
        most = max(1, int(given["max_pixels"]) // side**2)
    if "min_pixels" in given:
        least = max(1, -(-int(given["min_pixels"]) // side**2))
    return Tiles(least=least, most=most)


def budget(most_pixels: int, side: int) -> int:
    """The most tokens with no more pixels; 0 where even the fewest have more. side: pixels along one of a token."""
    return max((tokens for tokens in BUDGETS if tokens * side**2 <= most_pixels), default=0)
