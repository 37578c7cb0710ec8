"""Images that are cut into tiles (InternVL): odd ones, bounds of their number, videos, boxes, and unfit processors."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from PIL import Image

from megatron_trainer.data.encoding.encode import Encoded
from megatron_trainer.data.vision.decode import decode
from megatron_trainer.data.vision.form import TileForm
from megatron_trainer.failure import InvalidInput
from tests.megatron_trainer.data.test_odd_images import LIKE_TRANSFORMERS
from tests.support.data import vision
from tests.support.data.rows_with_images import encoded, seeing

KIND = "internvl"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The model's folder, and pictures beside the data."""
    root = tmp_path_factory.mktemp("tiles")
    vision.write(root / "model", KIND)
    vision.save(root / "a.png", 40, 24)
    for number in range(5):
        vision.save(root / "clip" / f"{number}.png", 20, 30, number)
    (root / "data.jsonl").write_text("")
    return root


def text_of(found, images):
    """The text with each run of image tokens as one."""
    ids = found.input_ids[0]
    is_again = np.append(False, (ids[1:] == images.tokens.image) & (ids[:-1] == images.tokens.image))
    return vision.tokenizer(KIND).decode(ids[~is_again])


SIZES = [(1, 1), (1, 90), (90, 1), (3, 5), (5, 3), (2, 2000), (2000, 2), (16, 16), (17, 16), (300, 299), (48, 32)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_tiles_of_any_size_are_those_of_transformers(folder, size):
    check(folder, vision.picture(*size))


@pytest.mark.parametrize("name", LIKE_TRANSFORMERS)
def test_tiles_of_odd_files_are_those_of_transformers(folder, name):
    check(folder, decode(LIKE_TRANSFORMERS[name])[0])


def test_tiles_of_random_sizes_and_bounds_are_those_of_transformers(folder):
    dice = random.Random(3)
    for seed in range(24):
        size = dice.randint(1, 120), dice.randint(1, 120)
        least = dice.randint(1, 4)
        bounds = {"min_num": least, "max_num": least + dice.randint(0, 8)} if seed % 2 else {}
        check(folder, vision.picture(*size, seed), **bounds)


def check(folder, image, **bounds):
    _, images = seeing(folder, model_kwargs=bounds)
    form = images.reader._form
    assert isinstance(form, TileForm)
    grid = form.grid((image.height, image.width))
    own = form.pixels([form.resized(image, grid)], [grid])
    names = {"min_num": "min_patches", "max_num": "max_patches"}
    settings = {names[name]: number for name, number in bounds.items()}
    theirs = vision.processor(folder / "model", KIND).image_processor(
        images=[image], crop_to_patches=True, return_tensors="np", **settings
    )
    assert own.grid_N3.tolist() == [[int(theirs["num_patches"][0]), 4, 4]]
    assert np.array_equal(own.values_PD, theirs["pixel_values"].reshape(-1, 48))


def test_kept_tiles_are_the_same(folder):
    row = {"query": "<image>?", "response": "Yes.", "images": ["a.png"]}
    found, plain = encoded(folder, row)
    again, kept = encoded(folder, row, image_cache_gib=1.0)
    assert list((folder / "cache").rglob("*.rgb"))
    first, second = (images.reader.pixels(each.media[0]) for each, images in ((found, plain), (again, kept)))
    assert np.array_equal(first.values_PD, second.values_PD)


@pytest.mark.parametrize(
    ("given", "tiles"),
    [
        ({}, 7),
        ({"model_kwargs": {"MAX_NUM": 2}}, 3),
        ({"model_kwargs": {"max_num": 1}}, 1),
        ({"model_kwargs": {"min_num": 8, "max_num": 9}}, 9),
        ({"model_kwargs": {"min_num": 8}}, 9),
        ({"max_pixels": 2 * 16 * 16}, 3),
        ({"max_pixels": 16 * 16 - 1}, 1),
        ({"min_pixels": 7 * 16 * 16 + 1, "max_pixels": 9 * 16 * 16}, 9),
    ],
)
def test_the_number_of_tiles_is_bounded_by_settings_or_by_pixels(folder, given, tiles):
    found, images = encoded(folder, {"query": "<image>?", "response": "Yes.", "images": ["a.png"]}, **given)
    assert found.media[0][0].grid == (tiles, 4, 4)
    assert (found.input_ids[0] == images.tokens.image).sum() == 4 * tiles


def test_frames_of_a_video_are_tiles_with_numbers_as_transformers_has_them(folder):
    pytest.importorskip("torchvision")
    whole = vision.processor(folder / "model", KIND)
    parts = [{"type": "video"}, {"type": "text", "text": "What?"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "Yes."}]
    shown = whole.apply_chat_template(turns, tokenize=False)
    frames = [np.asarray(Image.open(folder / "clip" / f"{number}.png")) for number in range(5)]
    made = whole(text=[shown], videos=[np.stack(frames)], return_tensors="pt", do_sample_frames=False)
    found, images = encoded(folder, {"query": "<video>What?", "response": "Yes.", "videos": ["clip"]})
    assert found.input_ids[0].tolist() == made["input_ids"][0].tolist()
    pixels = images.reader.pixels(found.media[0])
    assert pixels.grid_N3.tolist() == [[5, 4, 4]]
    assert np.abs(pixels.values_PD - made["pixel_values"].reshape(-1, 48).numpy()).max() <= 1e-5


def test_frames_are_chosen_by_rate_and_number_if_these_are_given(folder):
    row = {"query": "<video>?", "response": "Yes.", "videos": [{"frames": "clip", "fps": 2}]}

    def count(**given):
        found, images = encoded(folder, row, model_kwargs=given)
        shown = text_of(found, images)
        number = len(found.media[0][0].sources)
        assert [f"Frame{each}: <img>" in shown for each in (number, number + 1)] == [True, False]
        return number

    assert count() == 5
    assert count(fps=1) == 2
    assert count(fps_max_frames=3) == 3
    assert count(fps=1, fps_min_frames=4) == 4


def test_images_and_videos_keep_their_order_in_the_text(folder):
    row = {"query": "<video>then <image>?", "response": "Yes.", "videos": ["clip"], "images": ["a.png"]}
    found, images = encoded(folder, row)
    assert [medium.is_video for medium in found.media[0]] == [True, False]
    pixels = images.reader.pixels(found.media[0])
    assert pixels.grid_N3.tolist() == [[5, 4, 4], [7, 4, 4]]
    assert (found.input_ids[0] == images.tokens.image).sum() == 4 * 12
    assert text_of(found, images).count("</img>\n") == 6


def test_a_cut_before_the_end_of_a_video_leaves_no_number_of_a_frame_and_takes_no_image(folder):
    for query in ("<image>Then <video>What?", "<image>Then\n<video>What?"):
        row = {"query": query, "response": "Yes.", "images": ["a.png"], "videos": ["clip"]}
        found, images = encoded(folder, row)
        ids, media = found.input_ids[0], found.media[0]
        end = int(np.flatnonzero(ids == images.tokens.image)[27]) + 2  # seven tiles of four tokens, and the end
        last = int(
            np.flatnonzero(ids == images.tokens.video if images.tokens.video >= 0 else ids == images.tokens.image)[-1]
        )
        for stop in range(end + 2, len(ids)):
            kept, inside = images.tokens.whole(ids, media, slice(stop))
            shown = vision.tokenizer(KIND).decode(ids[kept])
            assert len(inside) == 1 + ("Frame5" in shown), stop
            assert ("Frame1" in shown) == ("Frame5" in shown) == (stop >= last + 2), (stop, shown[-80:])


def test_boxes_are_written_in_the_tokens_of_the_model(folder):
    row = {"query": "<image>Where is <ref-object>?", "response": "<bbox>", "images": ["a.png"]}
    found, images = encoded(folder, {**row, "objects": {"ref": ["it"], "bbox": [[10, 8, 40, 24]]}})
    assert "<ref>it</ref>?" in text_of(found, images)
    assert "<box>[[250, 333, 1000, 1000]]</box>" in text_of(found, images)


BAD = {
    "null": [None],
    "null among others": ["a.png", None],
    "too many": ["a.png", "a.png"],
    "missing": ["gone.png"],
    "no image": [b"hello world"],
    "a list in a list": [["a.png"]],
    "a number": [7],
}


@pytest.mark.parametrize("name", BAD)
def test_rows_whose_images_cannot_be_used_are_dropped(folder, name):
    found, _ = encoded(folder, {"query": "<image>?", "response": "Yes.", "images": BAD[name]})
    assert not isinstance(found, Encoded)
    assert found.reason


@pytest.mark.parametrize("empty", [None, [], ""], ids=str)
def test_rows_without_images_are_text(folder, empty):
    found, images = encoded(folder, {"query": "What?", "response": "Yes.", "images": empty})
    assert isinstance(found, Encoded)
    assert found.media == ()
    assert not (found.input_ids[0] == images.tokens.image).any()


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("preprocessor_config.json", {"size": {"height": 32, "width": 32}}, "makes tiles of 32 x 32 pixels"),
        ("processor_config.json", {"image_seq_length": 9}, "9 tokens of a tile"),
    ],
)
def test_a_processor_of_another_model_is_refused(tmp_path, file, changes, said):
    vision.write(tmp_path / "model", KIND)
    path = tmp_path / "model" / file
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**before, **changes}))
    with pytest.raises(InvalidInput, match=said):
        seeing(tmp_path)
