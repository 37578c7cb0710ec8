"""Multimodal positions are those of transformers' get_rope_index, for every family that has them."""

from __future__ import annotations

from functools import cache
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from megatron_trainer.data.mrope import mrope_positions
from megatron_trainjob.families.vision import Vision

IMAGE, VIDEO, TEXT = 300, 301, 7
SAMPLES: dict[str, tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]] = {
    "text": ([], []),
    "one image": ([(1, 4, 6)], []),
    "three images of odd sizes": ([(1, 2, 14), (1, 10, 2), (1, 6, 6)], []),
    "a video": ([], [(3, 4, 6)]),
    "both": ([(1, 4, 4), (1, 8, 2)], [(2, 4, 2), (4, 2, 6)]),
}
FAMILIES = {
    "qwen2_vl": {},
    "qwen2_5_vl": {"tokens_per_second": 4},
    "qwen3_vl": {"separates_frames": True},
    "qwen3_5": {"separates_frames": True},
}


def vision(name: str) -> Vision:
    return Vision(
        depth=1,
        hidden_size=32,
        width=32,
        num_heads=2,
        channels=3,
        patch_size=4,
        temporal_patch_size=2,
        merge_size=2,
        output_size=64,
        image_token=IMAGE,
        video_token=VIDEO,
        sections=(2, 3, 3),
        tensors={},
        **FAMILIES[name],
    )


def tokens(name: str, images: list[Any], videos: list[Any]) -> list[int]:
    """Text around every image and video; Qwen3-VL has text between the frames of a video too."""
    separates = FAMILIES[name].get("separates_frames")
    frames = chain.from_iterable([(1, h, w)] * t for t, h, w in videos) if separates else videos
    found = [TEXT] * 3
    for token, grids in ((IMAGE, images), (VIDEO, frames)):
        for t, h, w in grids:
            found += [token] * (t * h * w // 4) + [TEXT] * 2
    return found


@cache
def model_of(name: str) -> Any:
    config = AutoConfig.for_model(name, text_config={"num_hidden_layers": 1}, vision_config={"depth": 1})
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config).model


def theirs(name: str, ids: list[int], images: list[Any], videos: list[Any], seconds: list[float]) -> Any:
    model = model_of(name)
    row = torch.tensor([ids])
    kinds = (row == IMAGE).int() + 2 * (row == VIDEO).int()
    more = {"second_per_grid_ts": torch.tensor(seconds)} if seconds and name == "qwen2_5_vl" else {}
    found, _ = model.get_rope_index(
        row,
        kinds,
        image_grid_thw=torch.tensor(images) if images else None,
        video_grid_thw=torch.tensor(videos) if videos else None,
        **more,
    )
    return found[:, 0].numpy()


@pytest.mark.parametrize("seconds", [[], [0.5, 1.7]], ids=["", "seconds"])
@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("name", FAMILIES)
def test_positions_are_those_of_transformers(name: str, sample: str, seconds: list[float]):
    images, videos = SAMPLES[sample]
    ids = tokens(name, images, videos)
    found = mrope_positions(np.array(ids), images, vision(name), video_grids=videos, seconds_per_grid=seconds)
    assert found.tolist() == theirs(name, ids, images, videos, seconds).tolist()


@pytest.mark.parametrize(
    ("ids", "grids"),
    [([7, IMAGE, IMAGE, 7], [(1, 4, 4)]), ([7, IMAGE], []), ([7, IMAGE, 7], [(1, 2, 2), (1, 2, 2)])],
    ids=["cut in half", "without a grid", "without a place"],
)
def test_tokens_that_are_not_those_of_the_grids_are_an_error(ids: list[int], grids: list[Any]):
    with pytest.raises(ValueError, match="tokens from 1|more images"):
        mrope_positions(np.array(ids), grids, vision("qwen2_vl"))
