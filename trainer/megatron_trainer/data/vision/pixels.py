"""Turns images and videos into the pixels of the model: measured, decoded, resized, kept on disk.

The sizes of images are measured when rows become tokens; pixels are made when a micro-batch needs them, in the
processes that read ahead. Resized images are kept on disk as far as a budget allows.
"""

from __future__ import annotations

import hashlib
import logging
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from megatron_trainer.data.values import Medium, MediumFile, Pixels, RowError, joined_pixels
from megatron_trainer.data.vision import files, video
from megatron_trainer.data.vision.decode import decode
from megatron_trainer.data.vision.form import Form, Grid
from megatron_trainer.data.vision.frames import Frames
from megatron_trainer.failure import TrainingError
from megatron_trainjob.exit_codes import ExitCode

logger = logging.getLogger(__name__)

CHANGED = "an image is not the one that was tokenized"
ODD_FRAME = "the frames of a video have several sizes"
MOST_FRAMES_SHOWN = 8
"""Of a video, in a picture of it."""
LOOK_AGAIN = 64
"""Files written between two looks at the size of the cache, which other processes fill as well."""


@dataclass(frozen=True, kw_only=True)
class DiskCache:
    """Resized images on disk, at most budget_bytes of them (a few more while several processes write)."""

    folder: Path
    budget_bytes: int


class ImageReader:
    """Measures images and makes their pixels. Picklable; a copy in each process.

    form: what the model makes of an image. rules: of videos, None for a model that has none.
    """

    def __init__(self, form: Form, cache: DiskCache | None = None, rules: video.FrameRules | None = None) -> None:
        self._form = form
        self._cache = cache
        self._rules = rules
        self._grids: dict[tuple[int, int], Grid] = {}
        self._used_bytes, self._written = -1, 0

    def measure(self, source: MediumFile) -> tuple[Medium, str]:
        """The image with its sizes, fully decoded to prove that it can be, and a note for the user.

        Raises RowError when it cannot be trained on.
        """
        image, note = _decoded(source)
        size = image.height, image.width
        medium = Medium(sources=(source,), size=size, grid=self._grid(size))
        if self._cache is not None:
            self._keep(self._key(source, medium), self._resized(image, medium))
        return medium, note

    def measure_video(self, frames: Frames) -> tuple[Medium, str]:
        """As measure, of the frames that the model sees.

        Raises RowError when one cannot be read, or they are not those of one video.
        """
        if self._rules is None:
            raise RowError("videos are not read for this model", "leave such rows out")
        total = len(frames.sources)
        numbers = video.chosen_frames(total, frames.fps, self._rules)
        sources = tuple(frames.sources[number] for number in numbers)
        size = None
        for source in sources:
            image, _ = _decoded(source)
            size = size or (image.height, image.width)
            if (image.height, image.width) != size:
                other = f"{_shown(source)} has {image.width} x {image.height} pixels"
                raise RowError(ODD_FRAME, f"{other}, the first {size[1]} x {size[0]}")
        assert size is not None
        times = video.timestamps(numbers, frames.fps, self._rules)
        sides = (side // self._rules.patch_size for side in video.frame_size(len(sources), *size, self._rules))
        rows, columns = sides
        medium = Medium(
            sources=sources,
            size=size,
            grid=(len(times), rows, columns),
            is_video=True,
            seconds_per_step=video.seconds_per_step(numbers, total, frames.fps, self._rules),
            times=times,
        )
        return medium, ""

    def pixels(self, media: Sequence[Medium]) -> Pixels | None:
        """The pixels of images, None for none.

        Raises TrainingError if one has changed since it was measured, or no longer exists.
        """
        try:
            return joined_pixels([self._pixels(medium) for medium in media])
        except RowError as err:
            message = f"an image was there when its row was tokenized, and is not now: {err}"
            raise TrainingError(ExitCode.BAD_DATA, message) from err

    def thumbnail(self, medium: Medium, longest: int) -> Image.Image:
        """A small RGB image; of a video, some of its frames in a row. Raises RowError when it cannot be read."""
        shown = medium.sources[:: -(-len(medium.sources) // MOST_FRAMES_SHOWN)]
        images = [_decoded(source)[0] for source in shown]
        for image in images:
            image.thumbnail((longest, longest))
        strip = Image.new("RGB", (sum(image.width for image in images), max(image.height for image in images)))
        left = 0
        for image in images:
            strip.paste(image, (left, 0))
            left += image.width
        return strip

    def _pixels(self, medium: Medium) -> Pixels:
        frames = [self._frame(source, medium) for source in medium.sources]
        if medium.is_video:
            assert self._rules is not None
            values = video.patches(np.stack(frames), self._rules)
            return Pixels(values_PD=values, grid_N3=np.array([medium.grid], dtype=np.int64))
        return self._form.pixels(frames, [medium.grid])

    def _frame(self, source: MediumFile, medium: Medium) -> NDArray[np.uint8]:
        """An image, or one of a video, resized: [height, width, 3]."""
        key = "" if self._cache is None else self._key(source, medium)
        resized = self._kept(key, medium)
        if resized is None:
            image, _ = _decoded(source)
            if (image.height, image.width) != medium.size:
                found, known = f"{image.width} x {image.height}", f"{medium.size[1]} x {medium.size[0]}"
                detail = f"{_shown(source)} has {found} pixels, not {known}; set load_from_cache_file: false"
                raise RowError(CHANGED, detail)
            resized = self._resized(image, medium)
            self._keep(key, resized)
        return resized

    def _resized(self, image: Image.Image, medium: Medium) -> NDArray[np.uint8]:
        """[height, width, 3], as the processor of images, or of videos, resizes it."""
        if not medium.is_video:
            return self._form.resized(image, medium.grid)
        height, width, _ = self._shape(medium)
        return video.resized(np.asarray(image), (height, width))

    def _shape(self, medium: Medium) -> tuple[int, int, int]:
        """Of an image, or of one frame of a video, once it is resized."""
        if not medium.is_video:
            return self._form.shape(medium.grid)
        assert self._rules is not None
        return medium.grid[1] * self._rules.patch_size, medium.grid[2] * self._rules.patch_size, 3

    def _grid(self, size: tuple[int, int]) -> Grid:
        """The grid of an image of this (height, width), asked of the processor once for each size."""
        if size not in self._grids:
            self._grids[size] = self._form.grid(size)
        return self._grids[size]

    def _key(self, source: MediumFile, medium: Medium) -> str:
        """Of the file's content (of a path: its name, size and time) and the size of the result.

        Videos are resized in another way than images, so that a picture may have a place of each kind.
        """
        if isinstance(source, bytes):
            content = hashlib.sha256(source).hexdigest()
        else:
            try:
                status = os.stat(source)
            except OSError as err:
                raise RowError(files.NOT_FOUND, f"{source}: {err.strerror or err}") from err
            content = f"{source} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        made = f"{content} {medium.size} {self._shape(medium)} {'video' if medium.is_video else self._form.key}"
        return hashlib.sha256(made.encode()).hexdigest()[:40]

    def _path(self, key: str) -> Path:
        assert self._cache is not None
        return self._cache.folder / key[:2] / f"{key}.rgb"

    def _kept(self, key: str, medium: Medium) -> NDArray[np.uint8] | None:
        if self._cache is None:
            return None
        shape = self._shape(medium)
        try:
            content = self._path(key).read_bytes()
        except OSError:
            return None
        return np.frombuffer(content, np.uint8).reshape(shape) if len(content) == int(np.prod(shape)) else None

    def _keep(self, key: str, resized: NDArray[np.uint8]) -> None:
        """Write aside, then rename; nothing when the budget is spent or the disk is full."""
        if self._cache is None or not self._has_room(resized.nbytes):
            return
        path = self._path(key)
        if path.exists() and path.stat().st_size == resized.nbytes:
            return
        aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_bytes(resized.tobytes())
            os.replace(aside, path)
        except OSError as err:
            _tell_once(f"resized images are no longer kept: {err}")
            aside.unlink(missing_ok=True)
            return
        self._used_bytes += resized.nbytes
        self._written += 1

    def _has_room(self, num_bytes: int) -> bool:
        assert self._cache is not None
        if self._used_bytes < 0 or self._written >= LOOK_AGAIN:
            found = self._cache.folder.glob("*/*")
            self._used_bytes = sum(path.stat().st_size for path in found if not path.name.endswith(".part"))
            self._written = 0
        return self._used_bytes + num_bytes <= self._cache.budget_bytes


def _decoded(source: MediumFile) -> tuple[Image.Image, str]:
    """As decode. A row may have several images: what is wrong with one is said with its name."""
    content = files.read(source)
    try:
        return decode(content)
    except RowError as err:
        raise RowError(err.reason, f"{_shown(source)}: {err.detail}") from err


def _shown(source: MediumFile) -> str:
    return source if isinstance(source, str) else f"an image of {len(source)} bytes"


@lru_cache
def _tell_once(message: str) -> None:
    logger.warning("%s", message)
