"""Samples with images and videos of many sizes, the same in every process."""

from __future__ import annotations

from typing import Any

from tests.support.models.tiny_model import VOCAB_SIZE

IMAGE, VIDEO, START, END = range(VOCAB_SIZE, VOCAB_SIZE + 4)
_GRIDS: tuple[tuple[tuple[tuple[int, int, int], ...], tuple[tuple[int, int, int], ...]], ...] = (
    ((), ()),
    (((1, 4, 6),), ()),
    (((1, 2, 14), (1, 10, 2), (1, 6, 6)), ()),
    ((), ((3, 4, 6),)),
    (((1, 2, 4),), ((2, 2, 4),)),
)
"""The images and the videos of each sample: text, one image, three of odd sizes, a video, one of both."""
_TILES = tuple(
    (tuple((tiles, 4, 4) for tiles in images), tuple((frames, 4, 4) for frames in videos))
    for images, videos in (((), ()), ((3,), ()), ((1, 5, 2), ()), ((), (3,)), ((1,), (2,)))
)
"""The same of a model that cuts images into tiles."""
MICRO_BATCHES = ((0, 2), (1,), (3, 4), (0,))
"""Samples of each micro-batch; the last has text alone."""


def sample(number: int, vision: Any) -> Any:
    """One sample, the same in every process: text of its own around the images, then the videos."""
    import numpy as np

    from megatron_trainer.data.mrope import mrope_positions
    from megatron_trainer.data.values import Sample, joined_pixels

    images, videos = (_TILES if vision.tile else _GRIDS)[number]
    if vision.video_token < 0:  # no videos are read: images of their sizes
        images, videos = (*images, *((1, *sides) for _, *sides in videos)), ()
    random = np.random.default_rng(number)
    ids = random.integers(0, VOCAB_SIZE, 9 + number).tolist()
    for kind, (t, h, w) in [(IMAGE, grid) for grid in images] + [(VIDEO, grid) for grid in videos]:
        is_apart = kind == VIDEO and vision.separates_frames
        for _ in range(t if is_apart else 1):
            frames = 1 if is_apart else t
            token = IMAGE if vision.tile else kind
            ids += [START, *[token] * (frames * h * w // 4), END, *random.integers(0, VOCAB_SIZE, 3).tolist()]
    labels = np.array(ids, dtype=np.int32)
    labels[np.isin(labels, (IMAGE, VIDEO))] = -100
    if vision.tile:
        given = [each for each in (_pixels(images, random, vision), _pixels(videos, random, vision)) if each]
        return Sample(input_ids=np.array(ids, dtype=np.int32), labels=labels, images=joined_pixels(given))
    return Sample(
        input_ids=np.array(ids, dtype=np.int32),
        labels=labels,
        images=_pixels(images, random, vision),
        videos=_pixels(videos, random, vision),
        position_ids_3T=mrope_positions(np.array(ids), images, vision, video_grids=videos),
    )


def _pixels(grids: Any, random: Any, vision: Any) -> Any:
    import numpy as np

    from megatron_trainer.data.values import Pixels

    if not grids:
        return None
    number = sum(t * h * w for t, h, w in grids)
    values = random.standard_normal((number, vision.patch_values)).astype(np.float32)
    return Pixels(values_PD=values, grid_N3=np.array(grids, dtype=np.int64))
