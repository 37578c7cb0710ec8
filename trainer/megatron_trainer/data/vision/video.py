"""How a model sees a video: which frames, of what size, at what times, and their patches. No I/O.

The numbers are those of transformers' video processors of Qwen2-VL, Qwen3-VL and InternVL, which need torchvision.

Shape suffixes: F frames, H height, W width, C channels, P patches, D numbers of a patch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from megatron_trainer.data.values import RowError

TOO_SHORT = "a video has too few frames for the model"
TOO_NARROW = "a video is too narrow for the model"
FRAMES_PER_SECOND = 2.0
"""Frames of a second that a model sees, unless the user says otherwise."""
_WIDEST = 200
"""Most times that one side may be as long as the other, as transformers has it."""


Kind = Literal["qwen2", "qwen3", "tiles"]


@dataclass(frozen=True, kw_only=True)
class FrameRules:
    """The settings of a model's video processor, within those of the user.

    kind: qwen2 bounds the pixels of each frame; qwen3 those of all frames together, and writes the time before each
    step; of tiles, each frame becomes a square of `tile` pixels a side, with its number before it. least, most: these
    bounds. frame_least, frame_most: the user's, of one frame; None for none. budget: of the bound that a file asks for
    with cap_pixels_per_frame, in tokens; None for none. fps: frames of a second; of tiles 0 for all that a row has.
    """

    kind: Kind
    least: int = 0
    most: int = 0
    tile: int = 0
    frame_least: int | None = None
    frame_most: int | None = None
    budget: int | None = None
    fps: float = FRAMES_PER_SECOND
    min_frames: int = 4
    max_frames: int = 768
    patch_size: int
    temporal_patch_size: int = 2
    merge_size: int = 2
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def separates_frames(self) -> bool:
        """Whether each step stands alone between texts, with its time or number before it."""
        return self.kind != "qwen2"


_QWEN2: Mapping[str, Any] = {
    "size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28},
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
    "patch_size": 14,
    "max_video_tokens": 128_000,
}
_QWEN3: Mapping[str, Any] = {
    "size": {"shortest_edge": 128 * 32 * 32, "longest_edge": 768 * 32 * 32},
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
    "patch_size": 16,
    "max_video_tokens": 768,
}
_TILES: Mapping[str, Any] = {"image_mean": _QWEN2["image_mean"], "image_std": _QWEN2["image_std"]}
_MOST_TILES = 2**31
"""Frames of a video in tiles, unless the user says otherwise: any number."""
KINDS: Mapping[str, Kind] = {
    "qwen2_vl": "qwen2",
    "qwen2_5_vl": "qwen2",
    "qwen3_vl": "qwen3",
    "qwen3_vl_moe": "qwen3",
    "qwen3_5": "qwen3",
    "qwen3_5_moe": "qwen3",
}
"""By model_type: the video processor of the models that videos are read for."""


def rules_of(model_type: str, stored: Mapping[str, Any]) -> FrameRules | None:
    """The rules of a model's own files, None for a model whose videos are not read. stored: of its processor.

    Raises ValueError for files without bounds of pixels.
    """
    kind = KINDS.get(model_type)
    if kind is None:
        return None
    given = {**(_QWEN2 if kind == "qwen2" else _QWEN3), **{k: v for k, v in stored.items() if v is not None}}
    least, most = bounds_of(given["size"])
    if kind == "qwen2":
        least, most = given.get("min_pixels", least), given.get("max_pixels", most)
    if not least or not most:
        raise ValueError(f"size has {given['size']} instead of shortest_edge and longest_edge, in pixels")
    return FrameRules(
        kind=kind,
        least=least,
        most=most,
        budget=given["max_video_tokens"] if given.get("cap_pixels_per_frame") else None,
        fps=float(given.get("fps", FRAMES_PER_SECOND)),
        min_frames=given.get("min_frames", 4),
        max_frames=given.get("max_frames", 768),
        patch_size=given["patch_size"],
        temporal_patch_size=given.get("temporal_patch_size", 2),
        merge_size=given.get("merge_size", 2),
        mean=tuple(given["image_mean"]),
        std=tuple(given["image_std"]),
    )


def bounds_of(size: object) -> tuple[int, int]:
    """The fewest and most pixels that a processor's file states, 0 for none. Some files of transformers 4 have them by
    the names of the arguments.
    """
    stated = dict(size) if isinstance(size, Mapping) else {}
    names = ("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels")
    least, most = (next((stated[name] for name in either if stated.get(name)), 0) for either in names)
    return least, most


def rules_of_tiles(stored: Mapping[str, Any], *, side: int, patch_size: int, merge_size: int) -> FrameRules:
    """The rules of a model whose frames are tiles, `side` pixels along each side. stored: of its video processor.

    It sees every frame that a row names, unless the user bounds their number or gives a rate.
    """
    given = {**_TILES, **{key: value for key, value in stored.items() if value is not None}}
    return FrameRules(
        kind="tiles",
        tile=side,
        fps=0.0,
        min_frames=1,
        max_frames=_MOST_TILES,
        patch_size=patch_size,
        temporal_patch_size=1,
        merge_size=merge_size,
        mean=tuple(given["image_mean"]),
        std=tuple(given["image_std"]),
    )


def limited(rules: FrameRules, settings: Mapping[str, Any]) -> FrameRules:
    """The rules within the user's settings (pixels.in_pixels)."""
    names = {
        "fps": "fps",
        "fps_min_frames": "min_frames",
        "fps_max_frames": "max_frames",
        "video_min_pixels": "frame_least",
        "video_max_pixels": "frame_most",
    }
    return replace(rules, **{field: settings[name] for name, field in names.items() if name in settings})


def chosen_frames(total: int, fps: float | None, rules: FrameRules) -> list[int]:
    """The frames that the model sees, of `total` at `fps` a second.

    Frames of an unknown rate are those of rules.fps: all are seen, up to max_frames.
    """
    if (fps is None or rules.fps == 0) and total <= rules.max_frames:
        return list(range(total))
    if rules.kind == "tiles":
        wanted = int(total / fps * rules.fps) if fps and rules.fps else total
        count = min(max(wanted, rules.min_frames, 1), rules.max_frames, total)
        return [int(total / count / 2 + number * (total / count)) for number in range(count)]
    if rules.kind == "qwen3":
        wanted = int(total / (fps or rules.fps) * rules.fps)
        count = min(max(wanted, rules.min_frames), rules.max_frames, total)
        found: list[int] = np.linspace(0, total - 1, count).round().astype(int).tolist()
        return found
    step = rules.temporal_patch_size
    most = min(rules.max_frames, total) // step * step
    count = math.floor(min(max(total / (fps or rules.fps) * rules.fps, rules.min_frames), most, total) / step) * step
    if count == 0:
        return list(range(total))
    return [int(number) for number in np.arange(0, total, total / count, dtype=np.float32)]


def frame_size(num_frames: int, height: int, width: int, rules: FrameRules) -> tuple[int, int]:
    """(height, width) of the frames once resized: multiples of a token's side, within the bounds.

    Raises RowError for a video that is too short or too narrow.
    """
    if rules.tile:
        return rules.tile, rules.tile
    factor, step = rules.patch_size * rules.merge_size, rules.temporal_patch_size
    frames, rounded = 1, 1
    if rules.kind == "qwen3":
        if num_frames < step:
            raise RowError(TOO_SHORT, f"{num_frames}, and at least {step} are needed")
        frames, rounded = num_frames, round(num_frames / step) * step
        if min(height, width) < factor:
            scale = max(factor / height, factor / width)
            height, width = int(height * scale), int(width * scale)
    if max(height, width) > _WIDEST * min(height, width):
        raise RowError(TOO_NARROW, f"{width} x {height} pixels")
    least, most = _bounds(num_frames, rules)
    rows, columns = round(height / factor), round(width / factor)
    pixels = rounded * rows * columns * factor**2
    if pixels > most:
        shrinking = math.sqrt(frames * height * width / most)
        rows, columns = (max(1, math.floor(side / shrinking / factor)) for side in (height, width))
    elif pixels < least:
        growing = math.sqrt(least / (frames * height * width))
        rows, columns = (math.ceil(side * growing / factor) for side in (height, width))
    return rows * factor, columns * factor


def _bounds(num_frames: int, rules: FrameRules) -> tuple[int, int]:
    """Fewest and most pixels: of one frame, or under qwen3 of all."""
    least, most, together = rules.least, rules.most, 1 if rules.kind == "qwen2" else num_frames
    area = (rules.patch_size * rules.merge_size) ** 2
    if rules.budget is not None and rules.kind == "qwen2":
        total = int(rules.budget * area * 0.9)
        most = max(min(most, total * rules.temporal_patch_size // num_frames), int(least * 1.05))
    elif rules.budget is not None:
        most = max(min(rules.budget * area, most // num_frames), int(least * 1.05)) * num_frames
    if rules.frame_most is not None:
        most = min(most, rules.frame_most * together) if rules.kind == "qwen3" else rules.frame_most
    if rules.frame_least is not None:
        least = rules.frame_least * together
    return min(least, most), most


def seconds_per_step(numbers: Sequence[int], total: int, fps: float | None, rules: FrameRules) -> float:
    """Seconds between two steps of a video's grid in time."""
    if rules.tile:  # positions do not tell
        return 1.0
    return rules.temporal_patch_size / (len(numbers) / total * (fps or rules.fps))


def timestamps(numbers: Sequence[int], fps: float | None, rules: FrameRules) -> tuple[float, ...]:
    """The time of each step of the grid, the middle of its first and last frame, in seconds."""
    if rules.tile:
        return tuple(map(float, numbers))
    step = rules.temporal_patch_size
    times = [number / (fps or rules.fps) for number in numbers]
    times += times[-1:] * (-len(times) % step)
    return tuple((times[start] + times[start + step - 1]) / 2 for start in range(0, len(times), step))


def resized(frame_HWC: NDArray[np.uint8], size: tuple[int, int], mode: str = "bicubic") -> NDArray[np.uint8]:
    """The frame in another (height, width), bit by bit as torchvision makes it on a processor with AVX2."""
    import torch  # not for processes that encode text
    from torch.nn.functional import interpolate

    given = torch.from_numpy(np.array(frame_HWC)).permute(2, 0, 1)[None]
    made = interpolate(given, size=size, mode=mode, antialias=True)
    found: NDArray[np.uint8] = made[0].permute(1, 2, 0).contiguous().numpy()
    return found


def patches(frames_FHWC: NDArray[np.uint8], rules: FrameRules) -> NDArray[np.float32]:
    """The patches of resized frames, float32 [P, D]; the last frame is repeated to fill a step."""
    step, patch, merge = rules.temporal_patch_size, rules.patch_size, rules.merge_size
    missing = -len(frames_FHWC) % step
    whole = np.concatenate([frames_FHWC, np.repeat(frames_FHWC[-1:], missing, axis=0)]).astype(np.float32)
    mean, std = (np.array(each, np.float32) * np.float32(255) for each in (rules.mean, rules.std))
    whole = (whole - mean) / std
    if rules.tile:
        return np.ascontiguousarray(whole.transpose(0, 3, 1, 2)).reshape(-1, 3 * patch * patch)
    steps, rows, columns = len(whole) // step, whole.shape[1] // patch, whole.shape[2] // patch
    cut = whole.reshape(steps, step, rows // merge, merge, patch, columns // merge, merge, patch, 3)
    ordered = cut.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return np.ascontiguousarray(ordered.reshape(steps * rows * columns, 3 * step * patch * patch))
