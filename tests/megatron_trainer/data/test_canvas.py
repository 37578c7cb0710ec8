"""Images in a canvas of tiles with separators (Llama-4): odd ones, bounds of their number, cuts, unfit processors."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from megatron_trainer.data.encoding.encode import Encoded
from megatron_trainer.data.vision import canvas
from megatron_trainer.data.vision.decode import decode
from megatron_trainer.failure import InvalidInput
from tests.megatron_trainer.data.test_odd_images import LIKE_TRANSFORMERS
from tests.support.data import vision
from tests.support.data.rows_with_images import encoded, seeing

KIND = "llama4"
ROW = {"query": "<image>?", "response": "Yes.", "images": ["a.png"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The model's folder, and pictures beside the data."""
    root = tmp_path_factory.mktemp("canvas")
    vision.write(root / "model", KIND)
    vision.save(root / "a.png", 40, 24)
    vision.save(root / "clip" / "0.png", 20, 30)
    (root / "data.jsonl").write_text("")
    return root


def check(folder, image, **changes):
    """Tiles and the text around them. changes: of the processor's file, and the most tiles that a user asks for."""
    path = folder / "model" / "preprocessor_config.json"
    before = path.read_text()
    most = {"model_kwargs": {"max_num": changes.pop("max_num")}} if "max_num" in changes else {}
    try:
        path.write_text(json.dumps({**json.loads(before), **changes}))
        _, images = seeing(folder, **most)
        theirs = vision.processor(folder / "model", KIND)
    finally:
        path.write_text(before)
    form, size = images.reader._form, (image.height, image.width)
    grid = form.grid(size)
    own = form.pixels([form.resized(image, grid)], [grid])
    limit = {"max_patches": most["model_kwargs"]["max_num"]} if most else {}
    made = theirs(images=[image], text=["<|image|>"], return_tensors="pt", **limit)
    expected = made["pixel_values"].float().numpy()
    assert own.grid_N3.tolist() == [[len(expected), 4, 4]]
    assert np.array_equal(own.values_PD, expected.reshape(-1, 48))
    shown = canvas.text_of(size, form.processor, "<|patch|>" * 4)
    assert shown == theirs.tokenizer.decode(made["input_ids"][0], skip_special_tokens=False)


SIZES = [(1, 1), (1, 90), (90, 1), (3, 5), (5, 3), (2, 2000), (2000, 2), (16, 16), (17, 16), (300, 299), (48, 32)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_tiles_of_any_size_are_those_of_transformers(folder, size):
    check(folder, vision.picture(*size))


@pytest.mark.parametrize("name", LIKE_TRANSFORMERS)
def test_tiles_of_odd_files_are_those_of_transformers(folder, name):
    check(folder, decode(LIKE_TRANSFORMERS[name])[0])


def test_tiles_of_random_sizes_and_settings_are_those_of_transformers(folder):
    dice = random.Random(5)
    for seed in range(40):
        changes = {"max_patches": dice.randint(1, 17), "resize_to_max_canvas": dice.random() < 0.3}
        changes |= {"resample": 3} if seed % 5 == 0 else {}
        changes |= {"max_num": dice.randint(1, 12)} if seed % 3 == 0 else {}
        check(folder, vision.picture(dice.randint(1, 130), dice.randint(1, 130), seed), **changes)


@pytest.mark.parametrize(
    ("given", "tiles"),
    [
        ({}, 7),
        ({"model_kwargs": {"MAX_NUM": 2}}, 3),
        ({"model_kwargs": {"max_num": 1}}, 1),
        ({"max_pixels": 2 * 16 * 16}, 3),
        ({"max_pixels": 16 * 16 - 1}, 1),
    ],
)
def test_the_number_of_tiles_is_bounded_by_settings_or_by_pixels(folder, given, tiles):
    found, images = encoded(folder, ROW, **given)
    assert found.media[0][0].grid == (tiles, 4, 4)
    assert (found.input_ids[0] == images.tokens.image).sum() == 4 * tiles
    assert not found.weights[0][found.input_ids[0] == images.tokens.image].any()


def test_kept_tiles_are_the_same(folder):
    found, plain = encoded(folder, ROW)
    again, kept = encoded(folder, ROW, image_cache_gib=1.0)
    assert list((folder / "cache").rglob("*.rgb"))
    first, second = (images.reader.pixels(each.media[0]) for each, images in ((found, plain), (again, kept)))
    assert np.array_equal(first.values_PD, second.values_PD)


def test_a_cut_keeps_whole_images_with_all_their_separators(folder):
    row = {**ROW, "query": "One <image> and <image>?", "images": ["a.png", "a.png"]}
    found, images = encoded(folder, row)
    ids, media, known = found.input_ids[0], found.media[0], vision.tokenizer(KIND).get_vocab()
    starts, ends = (np.flatnonzero(ids == known[token]) for token in (canvas.START, canvas.END))
    for stop in range(1, len(ids)):
        kept, inside = images.tokens.whole(ids, media, slice(stop))
        assert len(inside) == sum(stop > end for end in ends)
        assert kept.stop == next((s for s, e in zip(starts, ends, strict=True) if s < stop <= e), stop)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**ROW, "query": "<image> or <|image|>?"}, "images and their places do not match"),
        ({**ROW, "query": "<image> or <|patch|>?"}, "images and their places do not match"),
        ({"query": "<video>?", "response": "Yes.", "videos": ["clip"]}, "videos are not read for this model"),
    ],
)
def test_rows_with_tokens_of_no_image_or_with_videos_are_dropped(folder, row, said):
    found, _ = encoded(folder, row)
    assert not isinstance(found, Encoded)
    assert found.reason == said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"size": {"height": 32, "width": 32}}, "makes tiles of 32 x 32 pixels, its tower takes 16 x 16"),
        ({"size": {"height": 16, "width": 32}}, "which are no squares"),
        ({"resample": 1}, "resample 1 is not read"),
        ({"do_normalize": False}, "do_normalize false is not read"),
        ({"size": 16}, "cannot be used"),
    ],
)
def test_a_processor_of_another_model_is_refused(tmp_path, changes, said):
    vision.write(tmp_path / "model", KIND)
    path = tmp_path / "model" / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(InvalidInput, match=said):
        seeing(tmp_path)


def test_settings_inside_the_file_of_the_whole_processor_are_read(tmp_path):
    vision.write(tmp_path / "model", KIND)
    before = tmp_path / "model" / "preprocessor_config.json"
    whole = {"image_processor": {**json.loads(before.read_text()), "max_patches": 2}, "patch_size": 4}
    (tmp_path / "model" / "processor_config.json").write_text(json.dumps(whole))
    before.unlink()
    _, images = seeing(tmp_path)
    assert images.settings.canvas.most == 2
