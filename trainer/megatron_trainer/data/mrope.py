"""Multimodal rotary positions of one sample: three numbers per token: time, row and column.

Text advances all three together. The tokens of an image share its start time and count its rows and columns; text
continues after the longer side. An image of 2 x 3 merged patches between two tokens of text on either side:

    token    a b  i i i i i i  c d
    time     0 1  2 2 2 2 2 2  5 6
    row      0 1  2 2 2 3 3 3  5 6
    column   0 1  2 3 4 2 3 4  5 6
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from megatron_trainjob.families.vision import Vision

Grid = Sequence[int]
"""Patches of an image or video in time, by row and by column (a row of grid_thw)."""


def mrope_positions(
    token_ids: NDArray[np.integer],
    image_grids: Sequence[Grid],
    vision: Vision,
    *,
    video_grids: Sequence[Grid] = (),
    seconds_per_grid: Sequence[float] = (),
) -> NDArray[np.int64]:
    """The positions of a sample, int64 [3, tokens], as transformers' get_rope_index computes them.

    token_ids: [tokens]. image_grids, video_grids: in the order of the sample. seconds_per_grid: of each
    video, the seconds per step of its time grid; 1 if omitted.

    Raises:
        ValueError: the tokens are not those of the grids.
    """
    images = iter([(grid, 1.0) for grid in image_grids])
    frames = _frames(video_grids, seconds_per_grid, vision)
    positions = np.empty((3, len(token_ids)), dtype=np.int64)
    visual = np.flatnonzero(np.isin(token_ids, (vision.image_token, vision.video_token)))
    place = start = 0
    while place < len(token_ids):
        ahead = visual[np.searchsorted(visual, place) :]
        end = int(ahead[0]) if len(ahead) else len(token_ids)
        positions[:, place:end] = np.arange(start, start + end - place)
        place, start = end, start + end - place
        if place == len(token_ids):
            break
        grid, interval = next(images if token_ids[place] == vision.image_token else frames, ((0, 0, 0), 1.0))
        block = _block(grid, interval, vision.merge_size)
        end = place + block.shape[1]
        if end == place or end > len(token_ids) or (token_ids[place:end] != token_ids[place]).any():
            raise ValueError(f"the tokens from {place} on are not those of an image or video of the grid {grid}")
        positions[:, place:end] = start + block
        place, start = end, start + max(int(grid[1]), int(grid[2])) // vision.merge_size
    if next(images, None) is not None or next(frames, None) is not None:
        raise ValueError("there are more images or videos than placeholders")
    return positions


def _frames(grids: Sequence[Grid], seconds: Sequence[float], vision: Vision) -> Iterator[tuple[Grid, float]]:
    """Each block of video tokens: its grid, and the distance of two steps in time."""
    for number, grid in enumerate(grids):
        if vision.separates_frames:
            yield from [((1, int(grid[1]), int(grid[2])), 1.0)] * int(grid[0])
        else:
            second = float(seconds[number]) if number < len(seconds) else 1.0
            yield grid, vision.tokens_per_second * second if vision.tokens_per_second else 1.0


def _block(grid: Grid, interval: float, merge_size: int) -> NDArray[np.int64]:
    """Positions of the tokens of one image or video from its start, int64 [3, tokens]."""
    steps, rows, columns = int(grid[0]), int(grid[1]) // merge_size, int(grid[2]) // merge_size
    time = (np.arange(steps, dtype=np.float32) * np.float32(interval)).astype(np.int64)
    blocks = np.meshgrid(time, np.arange(rows), np.arange(columns), indexing="ij")
    return np.stack([block.reshape(-1) for block in blocks]).astype(np.int64)
