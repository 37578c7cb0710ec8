"""Boxes of rows: what they may look like, and what is said about those that look wrong."""

from __future__ import annotations

import pytest

from megatron_trainer.data.encoding.encode import Encoded
from megatron_trainer.data.vision.boxes import INVALID, OUTSIDE, REVERSED
from tests.support.data import vision
from tests.support.data.image_rows import encode, encoder_of, pictures

BOX = [10, 6, 20, 12]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return encoder_of(vision.write(tmp_path_factory.mktemp("model"), "qwen2_5_vl"))[0]


def encoded(encoder, folder, **objects):
    """A question about two images, 40 x 24 and 33 x 47 pixels, and its answer with these objects."""
    row = {"query": "<image><image><ref-object>", "response": "<bbox>", "images": ["a.png", "b.jpg"]}
    return encode(encoder, {**row, "objects": {"ref": ["it"], "bbox": [BOX], **objects}}, folder)


def box_of(result):
    assert isinstance(result, Encoded), result
    text = vision.tokenizer().decode(result.input_ids[0])
    return text.partition("<|box_start|>")[2].partition("<|box_end|>")[0]


@pytest.mark.parametrize(
    ("objects", "box"),
    [
        ({}, "(10,6),(20,12)"),
        ({"bbox": BOX}, "(10,6),(20,12)"),
        ({"bbox": [[10.4, 6.6]]}, "(10,7)"),
        ({"bbox": [[0.25, 0.25, 0.5, 0.5]], "bbox_type": "norm1"}, "(10,6),(20,12)"),
        ({"image_id": [1]}, "(10,6),(19,12)"),
        ({"image_id": [1.0]}, "(10,6),(19,12)"),
        ({"image_id": [None]}, "(10,6),(20,12)"),
        ({"image_id": [float("nan")]}, "(10,6),(20,12)"),
    ],
    ids=["list", "one", "point", "shares", "image", "image of a table", "null", "null of a table"],
)
def test_a_box_in_pixels_of_the_resized_image(encoder, folder, objects, box):
    result = encoded(encoder, folder, **objects)
    assert (box_of(result), result.notes) == (box, ())


@pytest.mark.parametrize(
    ("objects", "note"),
    [
        ({"bbox": [[10, 6, 41, 12]]}, OUTSIDE),
        ({"bbox": [[-1, 6, 20, 12]]}, OUTSIDE),
        ({"bbox": [[250, 250, 500, 500]], "bbox_type": "norm1"}, OUTSIDE),
        ({"bbox": [[20, 12, 10, 6]]}, REVERSED),
        ({"bbox": [[20, 12, 10, 6, 1, 1]]}, None),
        ({"bbox": [BOX, BOX]}, "a row has more objects.bbox than places <bbox>; the last ones are left out"),
        ({"ref": ["it", "that"]}, "a row has more objects.ref than places <ref-object>; the last ones are left out"),
        ({"label": ["it"]}, "nothing reads label of objects"),
    ],
)
def test_what_is_odd_about_objects_is_said(encoder, folder, objects, note):
    assert encoded(encoder, folder, **objects).notes == (() if note is None else (note,))


@pytest.mark.parametrize(
    "objects",
    [
        {"ref": [None]},
        {"ref": [["it", "that"]]},
        {"bbox": [None]},
        {"bbox": [[1, 2, 3]]},
        {"bbox": [["1", "2"]]},
        {"bbox_type": "norm1000"},
        {"image_id": [2]},
        {"image_id": [0.5]},
    ],
)
def test_invalid_objects_drop_their_row(encoder, folder, objects):
    assert encoded(encoder, folder, **objects).reason == INVALID
