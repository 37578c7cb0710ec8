"""Effects of the arguments about images: on tokens, pixels and boxes of rows, and on what is kept on disk."""

import json

import numpy as np
import pytest
from transformers import AutoTokenizer

from megatron_trainer import environment
from megatron_trainer.data.encoding.encode import Encoder, EncodeSettings
from megatron_trainer.data.row import Record
from megatron_trainer.data.vision.model import image_rows_of
from megatron_trainjob.args import pixels, rules
from megatron_trainjob.args.tree import TrainArgs
from tests.effects.registry import effect
from tests.support.data import vision

ROW = {"query": "<image>Where is <ref-object>?", "response": "At <bbox>.", "images": ["a.png"]}
OBJECTS = {"ref": ["it"], "bbox": [[10, 8, 40, 24]]}


@pytest.fixture
def folder(tmp_path):
    vision.save(tmp_path / "rows" / "a.png", 40, 24)
    (tmp_path / "rows" / "data.jsonl").write_text("")
    vision.write(tmp_path / "model", most=10**6)
    return tmp_path


def seen(folder, row=ROW, *, kind="qwen2_5_vl", file="rows/data.jsonl", **args):
    """(text without repetition of image tokens, media, reader) of a row with these arguments."""
    model = folder / "model"
    config = {**json.loads((model / "config.json").read_text()), "model_type": kind}
    images = image_rows_of(TrainArgs(**args), model, config, AutoTokenizer.from_pretrained(model), folder / "cache")
    encoder = Encoder(vision.tokenizer(), EncodeSettings(vision=images.settings), images)
    objects = {"objects": OBJECTS} if "images" in row else {}
    [encoded] = encoder.encode([Record(0, str(folder / file), 1, {**row, **objects})])
    text = vision.tokenizer().decode([i for i in encoded.input_ids[0] if i != images.tokens.image])
    return text, encoded.media[0], images.reader


@effect("max_pixels", "min_pixels")
def test_pixels_of_an_image_stay_within_their_limits(folder):
    def size(**args):
        [medium] = seen(folder, **args)[1]
        return medium.grid[1] * 4, medium.grid[2] * 4

    assert size() == (24, 40)
    assert size(max_pixels=400) == (8, 24)
    height, width = size(min_pixels=4000)
    assert height * width >= 4000
    assert size(max_pixels=24 * 40, min_pixels=24 * 40) == (24, 40)
    height, width = size(min_pixels=2 * 10**6)
    assert height * width >= 2 * 10**6, "more than the model's own most"


@effect("model_kwargs")
def test_settings_of_models_bound_images_frames_and_their_number(folder):
    for number in range(9):
        vision.save(folder / "rows" / "clip" / f"{number}.png", 40, 24, number)
    clip = {"query": "<video>?", "response": "Yes.", "videos": [{"frames": "clip", "fps": 3}]}

    def video(**given):
        [medium] = seen(folder, clip, model_kwargs=given)[1]
        return len(medium.sources), medium.grid[1] * 4, medium.grid[2] * 4

    def image(**given):
        [medium] = seen(folder, model_kwargs=given)[1]
        return medium.grid[1] * 4, medium.grid[2] * 4

    assert video() == (6, 24, 40)
    assert video(fps=1) == (4, 24, 40), "at least four"
    assert video(fps=1, fps_min_frames=2) == (2, 24, 40)
    assert video(fps_max_frames="4") == (4, 24, 40)
    assert video(VIDEO_MAX_PIXELS=400) == video(video_max_token_num=6) == (6, 8, 24)
    assert video(max_pixels=400) == (6, 24, 40), "of images alone"
    assert video(video_min_pixels=4000)[1:] == video(video_min_token_num=63)[1:] == image(min_pixels=4000)
    assert image(max_pixels=400) == image(image_max_token_num=6) == (8, 24)
    assert image(image_min_token_num=63) == image(min_pixels=63 * 64)


@effect("model_kwargs")
def test_boxes_of_qwen_are_between_its_tokens_or_lists_of_numbers(folder):
    new = seen(folder, model_kwargs={"QWENVL_BBOX_FORMAT": "new"})[0]
    assert "Where is it?" in new
    assert "At [10, 8, 40, 24]." in new
    legacy = "At <|box_start|>(10,8),(40,24)<|box_end|>."
    assert legacy in seen(folder, model_kwargs={"qwenvl_bbox_format": "legacy"})[0]
    assert legacy in seen(folder)[0]


def test_variables_of_other_programs_are_named_where_a_run_has_them():
    assert environment.ignored_of_images({"MAX_PIXELS": "9", "NFRAMES": "8", "ROOT_IMAGE_DIR": "/x", "HOME": "/"}) == [
        "nothing reads the variable ROOT_IMAGE_DIR (/x); use image_root",
        "nothing reads the variable MAX_PIXELS (9); use model_kwargs: {max_pixels: ...}",
        "nothing reads the variable NFRAMES (8)",
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"qwenvl_bbox_format": "old"}, "qwenvl_bbox_format must be legacy or new"),
        (
            {"fps_max_frame": 3},
            "fps_max_frame is not read; did you mean fps_max_frames?; other variables go into spec.env",
        ),
        ({"fps": 1, 9: 1}, f"9 is not read; known are {', '.join(pixels.NAMES)}; other variables go into spec.env"),
        ({"nframes": 8}, "nframes is read by nothing here; remove it"),
        ({"fps": -1}, "fps must be a positive number"),
        ({"fps_max_frames": 2.5}, "fps_max_frames must be a positive whole number"),
        ({"max_pixels": 9, "MAX_PIXELS": 9}, "max_pixels stands there twice"),
        ({"max_pixels": 9, "image_max_token_num": 9}, "image_max_token_num and max_pixels limit the same; remove one"),
        ({"fps_min_frames": 9, "fps_max_frames": 4}, "fps_min_frames is more than fps_max_frames"),
    ],
)
def test_settings_that_nothing_reads_are_refused(given, said):
    found = rules.check(TrainArgs(model_kwargs=given), frozenset({"model_kwargs"}), task="sft", path="")
    assert [v.message for v in found if v.path.endswith("model_kwargs") and v.severity == "error"] == [said]


@effect("norm_bbox")
def test_boxes_are_in_thousandths_or_in_pixels_of_the_resized_image(folder):
    def box(**args):
        text = seen(folder, **args)[0]
        assert "<|object_ref_start|>it<|object_ref_end|>" in text
        return text.partition("<|box_start|>")[2].partition("<|box_end|>")[0]

    assert box(norm_bbox="norm1000") == "(250,333),(1000,1000)"
    assert box(norm_bbox="none") == "(10,8),(40,24)"
    assert box(norm_bbox="none", max_pixels=400) == "(6,3),(24,8)"
    assert box(max_pixels=400) == "(6,3),(24,8)", "Qwen2.5-VL"
    assert box(kind="qwen2_vl", max_pixels=400) == "(250,333),(1000,1000)"


@effect("image_root")
def test_relative_paths_start_at_the_root(folder, monkeypatch):
    vision.save(folder / "elsewhere" / "a.png", 16, 8)
    [own], [other] = seen(folder)[1], seen(folder, image_root=str(folder / "elsewhere"))[1]
    assert (own.size, other.size) == ((24, 40), (8, 16))
    monkeypatch.setenv("HOME", str(folder))
    [at_home] = seen(folder, image_root="~/elsewhere")[1]
    assert at_home.size == (8, 16)


@effect("image_cache_gib")
def test_resized_images_are_kept_within_the_budget_and_are_the_same(folder):
    def kept():
        return [path for path in (folder / "cache").rglob("*.rgb")]

    _, media, reader = seen(folder)
    plain = reader.pixels(media).values_PD
    assert kept() == []
    seen(folder, image_cache_gib=2000 / 2**30)
    assert kept() == [], "the image has 2880 bytes"
    _, media, reader = seen(folder, image_cache_gib=3000 / 2**30)
    [path] = kept()
    whole = path.read_bytes()
    assert np.array_equal(reader.pixels(media).values_PD, plain)
    path.write_bytes(bytes(2880))
    assert not np.array_equal(reader.pixels(media).values_PD, plain), "it is read"
    path.write_bytes(b"half")
    assert np.array_equal(reader.pixels(media).values_PD, plain), "a damaged file is not read"
    path.write_bytes(whole)
    vision.save(folder / "rows" / "b.png", 40, 24, seed=3)
    seen(folder, {**ROW, "images": ["b.png"]}, image_cache_gib=3000 / 2**30)
    assert len(kept()) == 1, "there is room for one"


def test_text_models_say_that_they_have_no_images():
    limits = {"max_pixels": 100, "min_pixels": 10, "model_kwargs": {"fps": 1}}
    args = TrainArgs(**limits, norm_bbox="none", image_root="/x", image_cache_gib=1.0)
    found = rules.check(args, frozenset(), task="sft", hf_config={"model_type": "llama"}, path="")
    said = {violation.path.lstrip(".") for violation in found if "a text model has no images" in violation.message}
    assert said == {"max_pixels", "min_pixels", "model_kwargs", "norm_bbox", "image_root", "image_cache_gib"}


def test_the_fewest_pixels_cannot_be_more_than_the_most():
    found = rules.check(TrainArgs(max_pixels=100, min_pixels=200), frozenset(), task="sft", path="")
    assert [violation.message for violation in found if violation.path.endswith("min_pixels")] == [
        "is more than max_pixels (100); lower it, or raise max_pixels"
    ]
