"""Finds the frames of a video: a folder of pictures, or a list of them, with their rate where the row says it.

Video files are not decoded; a row that names one is dropped with the command that extracts its frames.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from megatron_trainer.data.values import MediumFile, RowError
from megatron_trainer.data.vision import files
from megatron_trainer.data.vision.decode import FORMATS

NOT_FOUND = "a video is not there"
NO_FRAMES = "a video has no frames"
ONE_PICTURE = "a video is a single picture"
NO_VIDEO = "a video is neither a folder nor a list of frames"
FILE = "a video file is not decoded"
NO_RATE = "the rate of a video is not a positive number"
RATES = ("fps", "sample_fps")
"""Keys of an object for the frames of a second, as the row's frames are."""
_KEYS = ("frames", "video", "video_url", "url", "path", "source", "bytes", "base64", "data")
_MOST_FPS = 1000


@dataclass(frozen=True, kw_only=True)
class Frames:
    """The files of a video's frames in order, and how many of them are a second; None if the row does not say."""

    sources: tuple[MediumFile, ...]
    fps: float | None = None


def open_frames(value: object, folders: Sequence[Path]) -> Frames:
    """The frames of a video, given in any form that rows use.

    folders: where relative paths are looked up, in order.

    Raises RowError when they cannot be found.
    """
    if isinstance(value, Mapping):
        return _of_object(value, folders)
    if isinstance(value, bytes | bytearray):
        raise _undecoded("VIDEO")
    if isinstance(value, list | tuple):
        if not value:
            raise RowError(NO_FRAMES, "the list is empty")
        return Frames(sources=tuple(files.open_image(each, folders) for each in value))
    if not isinstance(value, str) or not value.strip():
        raise RowError(NO_VIDEO, f"it is of type {type(value).__name__}")
    return Frames(sources=tuple(map(str, _in_folder(value, folders))))


def _of_object(value: Mapping[str, object], folders: Sequence[Path]) -> Frames:
    inner = next((value[key] for key in _KEYS if value.get(key) not in (None, "", b"", [], {})), None)
    if inner is None:
        raise RowError(NO_VIDEO, f"an object with {', '.join(map(str, value)) or 'nothing'}")
    found = open_frames(inner, folders)
    rate = next((value[key] for key in RATES if value.get(key) is not None), None)
    return found if rate is None else Frames(sources=found.sources, fps=_rate(rate))


def _rate(value: object) -> float:
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else 0.0
    except ValueError:
        number = 0.0
    if not 0 < number <= _MOST_FPS:
        raise RowError(NO_RATE, f"{str(value)[:80]!r}; give frames per second, at most {_MOST_FPS}")
    return number


def _in_folder(text: str, folders: Sequence[Path]) -> list[Path]:
    """The pictures in a folder by name, numbers in it by their value."""
    scheme = text.lstrip()[:12].lower()
    if not scheme.startswith(files.FILE_URL) and ("://" in scheme or scheme.startswith("data:")):
        raise _undecoded(text)
    try:
        found = files.existing(text, folders)
        if found is None:
            raise RowError(NOT_FOUND, f"{text[:120]}{files.looked_in(text, folders)}")
        if not found.is_dir():
            if found.suffix.lower() in _endings():
                raise RowError(ONE_PICTURE, f"{text[:120]}; give a folder of frames, or a list of them")
            raise _undecoded(text)
        pictures = [path for path in found.iterdir() if path.suffix.lower() in _endings() and path.name[0] != "."]
    except (OSError, ValueError, RuntimeError) as err:  # also names that no file can have
        raise RowError(NOT_FOUND, f"{text[:120]}: {err}") from err
    if not pictures:
        raise RowError(NO_FRAMES, f"the folder {text[:120]} has no pictures")
    return sorted(pictures, key=_in_order)


def _endings() -> frozenset[str]:
    """Of names of pictures that can be decoded."""
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in FORMATS)


def _in_order(path: Path) -> list[tuple[int, str]]:
    """frame2 before frame10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", path.name)]


def _undecoded(text: str) -> RowError:
    name = text[:120]
    command = f"extract frames (ffmpeg -i {name} -vf fps=2 FOLDER/%06d.jpg) and name the folder"
    return RowError(FILE, f"{name}: {command}")
