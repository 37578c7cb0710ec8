"""Rows with videos become the tokens, pixels and positions that transformers' own processors make of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from transformers.video_utils import VideoMetadata

from megatron_trainer.data.encoding.encode import Encoded
from megatron_trainer.data.values import Rejection
from megatron_trainer.data.vision import video
from megatron_trainer.data.vision.frames import open_frames
from megatron_trainjob.args.tree import TrainArgs
from tests.support.data import vision
from tests.support.data.image_rows import encode, encoder_of, text, turns

KINDS = ("qwen2_5_vl", "qwen3_vl", "qwen3_5")
NUM_FRAMES = 7
ROUNDING = 1e-6
"""Of normalizing: resized colors are the same bits."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of frames named by number, and a picture, beside the data."""
    root = tmp_path_factory.mktemp("videos")
    for number in range(NUM_FRAMES):
        vision.save(root / "clip" / f"frame{number + 4}.jpg", 41, 27, seed=number)  # frame4 to frame10
    (root / "clip" / "notes.txt").write_text("not a frame")
    vision.save(root / "a.png", 40, 24, 9)
    vision.save(root / "odd.png", 20, 24, 9)
    (root / "film.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
    (root / "empty").mkdir()
    (root / "data.jsonl").write_text("")
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {kind: vision.write(root / kind, kind) for kind in KINDS}


def names(folder):
    return [str(folder / "clip" / f"frame{number + 4}.jpg") for number in range(NUM_FRAMES)]


def truth(model, kind, messages, paths, *, fps=None, pictures=(), **settings):
    """What transformers' processor makes of the messages with one video of these frames, sampled if a rate is given."""
    from transformers.image_utils import load_image

    whole = vision.processor(model, kind)
    for name, value in settings.items():
        setattr(whole.video_processor, name, value)
    frames = np.stack([np.asarray(load_image(path)) for path in paths])
    known = VideoMetadata(total_num_frames=len(paths), fps=fps or 2.0, frames_indices=list(range(len(paths))))
    shown = whole.apply_chat_template(messages, tokenize=False)
    images = {"images": [load_image(str(path)) for path in pictures]} if pictures else {}
    return whole(
        text=[shown],
        videos=[frames],
        videos_kwargs={"video_metadata": [known], "do_sample_frames": fps is not None, "fps": 2.0},
        return_tensors="np",
        **images,
    )


def film(*parts):
    """Content parts: a string is text, ... an image, None a video."""
    return [{"type": "video"} if part is None else text(part)[0] for part in parts]


ROW = {"query": "<video>What happens?", "response": "Nothing."}
ONE = turns(film(None, "What happens?"), "Nothing.")
FORMS = {
    "a folder": {**ROW, "videos": ["clip"]},
    "a folder, not in a list": {**ROW, "video": "clip"},
    "a list of frames": {**ROW, "videos": [[f"clip/frame{n}.jpg" for n in range(4, 11)]]},
    "no tag": {**ROW, "query": "What happens?", "videos": ["clip"]},
    "a part": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "video", "video": "clip"}, {"type": "text", "text": "What happens?"}],
            },
            {"role": "assistant", "content": "Nothing."},
        ]
    },
    "a part with a list of frames": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "video", "video": [f"clip/frame{n}.jpg" for n in range(4, 11)]},
                    {"type": "text", "text": "What happens?"},
                ],
            },
            {"role": "assistant", "content": "Nothing."},
        ]
    },
    "a part of a URL": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "video_url", "video_url": {"url": "file://{folder}/clip"}},
                    {"type": "text", "text": "What happens?"},
                ],
            },
            {"role": "assistant", "content": "Nothing."},
        ]
    },
    "a part without a source": {
        "messages": [
            {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What happens?"}]},
            {"role": "assistant", "content": "Nothing."},
        ],
        "videos": ["clip"],
    },
}


def same(encoded, images, expected):
    assert isinstance(encoded, Encoded), encoded
    assert encoded.input_ids[0].tolist() == expected["input_ids"][0].tolist()
    [medium] = [medium for medium in encoded.media[0] if medium.is_video]
    pixels = images.reader.pixels([medium])
    assert pixels.grid_N3.tolist() == expected["video_grid_thw"].tolist()
    assert pixels.values_PD.shape == expected["pixel_values_videos"].shape
    assert np.abs(pixels.values_PD - expected["pixel_values_videos"]).max() <= ROUNDING
    if "second_per_grid_ts" in expected:
        assert [medium.seconds_per_step] == pytest.approx(list(expected["second_per_grid_ts"]))
    return medium


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_tokens_and_pixels_of_a_video_are_those_of_transformers(models, folder, kind, form):
    row = json.loads(json.dumps(FORMS[form]).replace("{folder}", str(folder)))
    encoder, images = encoder_of(models[kind])
    same(encode(encoder, row, folder), images, truth(models[kind], kind, ONE, names(folder)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_video_between_images(models, folder, kind):
    row = {"query": "<image>a<video>b<image>c", "response": "Yes.", "images": ["a.png", "odd.png"], "videos": ["clip"]}
    encoder, images = encoder_of(models[kind])
    encoded = encode(encoder, row, folder)
    pictures = [folder / "a.png", folder / "odd.png"]
    expected = truth(models[kind], kind, turns(film(..., "a", None, "b", ..., "c")), names(folder), pictures=pictures)
    same(encoded, images, expected)
    found = images.reader.pixels([medium for medium in encoded.media[0] if not medium.is_video])
    assert np.array_equal(found.values_PD, expected["pixel_values"])
    assert [medium.is_video for medium in encoded.media[0]] == [False, True, False]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fps", [2, 3, 4, 9.5])
def test_frames_of_a_known_rate_are_sampled_as_transformers_does(models, folder, kind, fps):
    row = {**ROW, "videos": [{"frames": "clip", "fps": fps}]}
    encoder, images = encoder_of(models[kind])
    medium = same(encode(encoder, row, folder), images, truth(models[kind], kind, ONE, names(folder), fps=fps))
    part = {"type": "video", "video": "clip", "fps": str(fps)}
    messages = [{"role": "user", "content": [part]}, {"role": "assistant", "content": "Nothing."}]
    [other] = encode(encoder, {"messages": messages}, folder).media[0]
    assert replace(other, times=()) == replace(medium, times=())


RULES = video.FrameRules(kind="qwen2", least=64, most=64 * 64, patch_size=4, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_sizes_and_samples_of_many_videos_are_those_of_transformers(kind):
    """Bounds that shrink, bounds that enlarge, a bound on all frames; rates that leave out few frames or most."""
    pytest.importorskip("torchvision")
    import torch
    from transformers import Qwen2VLVideoProcessor, Qwen3VLVideoProcessor

    random = np.random.default_rng(5)
    theirs = Qwen2VLVideoProcessor if kind == "qwen2" else Qwen3VLVideoProcessor
    for number in range(150):
        frames, height, width = (int(n) for n in random.integers((2, 3, 3), (40, 300, 300)))
        least = int(random.choice([64, 4096, 60_000]))
        most = max(least, int(random.choice([4096, 70_000, 10**6])))
        budget = [None, 20, 800][number % 3]
        settings = {"patch_size": 4, "size": {"shortest_edge": least, "longest_edge": most}, "min_frames": 4}
        capped = {} if budget is None else {"cap_pixels_per_frame": True, "max_video_tokens": budget}
        processor = theirs(**settings, max_frames=int(random.integers(4, 30)), **capped)
        rules = replace(RULES, kind=kind, least=least, most=most, budget=budget, max_frames=processor.max_frames)
        fps = float(random.choice([1, 2, 7.5, 24, 30]))
        metadata = VideoMetadata(total_num_frames=frames, fps=fps)
        expected = processor.sample_frames(metadata, fps=2.0)
        assert video.chosen_frames(frames, fps, rules) == [int(n) for n in expected], (frames, fps, rules)
        resized = processor.resize(
            torch.zeros(1, frames, 3, height, width, dtype=torch.uint8),
            size=processor.size if not isinstance(processor.size, dict) else type(processor.size)(processor.size),
            resample=processor.resample,
            factor=8,
            temporal_factor=2,
            cap_pixels_per_frame=bool(capped),
        )
        assert video.frame_size(frames, height, width, rules) == tuple(resized.shape[-2:]), (frames, height, width)


def rejected(models, folder, videos, kind="qwen2_5_vl"):
    result = encode(encoder_of(models[kind])[0], {**ROW, "videos": videos}, folder)
    assert isinstance(result, Rejection), result
    return result


BAD = {
    "missing": (["gone"], "a video is not there"),
    "a file": (["film.mp4"], "a video file is not decoded"),
    "a URL": (["https://host/film.mp4"], "a video file is not decoded"),
    "bytes": ([b"\0\0\0\x18ftypmp42"], "a video file is not decoded"),
    "a picture": (["a.png"], "a video is a single picture"),
    "an empty folder": (["empty"], "a video has no frames"),
    "an empty list of frames": ([{"frames": [], "fps": 1}], "a video is neither a folder nor a list of frames"),
    "a number": ([3], "a video is neither a folder nor a list of frames"),
    "null": ([None], "a video is neither a folder nor a list of frames"),
    "a frame that is gone": ([["clip/frame4.jpg", "clip/frame99.jpg"]], "an image is not there"),
    "a frame that is broken": ([["clip/frame4.jpg", "film.mp4"]], "an image cannot be read"),
    "frames of two sizes": ([["a.png", "odd.png"]], "the frames of a video have several sizes"),
    "a rate of zero": ([{"frames": "clip", "fps": 0}], "the rate of a video is not a positive number"),
    "a rate in words": ([{"frames": "clip", "fps": "fast"}], "the rate of a video is not a positive number"),
    "two videos for one place": (["clip", "clip"], "images and their places do not match"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_row_whose_video_cannot_be_used_is_dropped_with_the_reason(models, folder, name):
    videos, reason = BAD[name]
    assert rejected(models, folder, videos).reason == reason


def test_a_file_is_refused_with_the_command_that_extracts_its_frames(models, folder):
    assert rejected(models, folder, ["film.mp4"]).detail == (
        "film.mp4: extract frames (ffmpeg -i film.mp4 -vf fps=2 FOLDER/%06d.jpg) and name the folder"
    )


def test_one_frame_is_too_few_where_frames_are_bounded_together(models, folder):
    assert rejected(models, folder, [["a.png"]], "qwen3_vl").reason == "a video has too few frames for the model"
    [medium] = encode(encoder_of(models["qwen2_5_vl"])[0], {**ROW, "videos": [["a.png"]]}, folder).media[0]
    assert medium.grid[0] == 1, "the other kind repeats it"


def test_a_setting_of_a_single_video_is_noted(models, folder):
    part = {"type": "video", "video": "clip", "max_pixels": 5000, "nframes": 3}
    picture = {"type": "image", "image": "a.png", "resized_height": 280}
    messages = [{"role": "user", "content": [part, picture]}, {"role": "assistant", "content": "Nothing."}]
    notes = encode(encoder_of(models["qwen2_5_vl"])[0], {"messages": messages}, folder).notes
    for said in ("max_pixels of a single video", "nframes of a single video", "resized_height of a single image"):
        assert f"nothing reads {said}; model_kwargs holds such settings for all" in notes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_cut_never_leaves_half_a_video(models, folder, kind, side):
    row = {
        "messages": [
            *({"role": "user", "content": "<video>A?"}, {"role": "assistant", "content": "a" * 20}),
            *({"role": "user", "content": "<image>B?<video>"}, {"role": "assistant", "content": "b" * 20}),
        ],
        "images": ["a.png"],
        "videos": ["clip", ["a.png", "a.png", "a.png"]],
    }
    whole = encode(encoder_of(models[kind])[0], row, folder)
    kept = set()
    for limit in range(40, len(whole.input_ids[0]), 3):
        encoder, images = encoder_of(models[kind], max_length=limit, truncation_strategy=side)
        cut = encode(encoder, row, folder)
        if not isinstance(cut, Encoded):
            assert cut.reason == "no trained token is left after truncation"
            continue
        media, ids = (cut.media[0] if cut.media else ()), cut.input_ids[0]
        kept.add(len(media))
        tokens = images.tokens
        videos = [medium for medium in media if medium.is_video]
        assert (ids == tokens.video).sum() == sum(tokens.num_tokens(medium) for medium in videos)
        steps = sum(medium.grid[0] for medium in videos) if tokens.separates_frames else 0
        assert (ids == tokens.start).sum() == (ids == tokens.end).sum() == len(media) + steps
        shown = vision.tokenizer(kind).decode(ids[~np.isin(ids, (tokens.video, tokens.image))])
        assert shown.count("seconds>") == shown.count(" seconds") == steps
    assert kept >= ({0, 1, 2} if side == "left" else {1, 2, 3})


@pytest.mark.parametrize("kind", KINDS)
def test_videos_carry_no_loss_where_everything_is_trained(models, folder, kind):
    encoder, images = encoder_of(models[kind], loss_scale="all")
    encoded = encode(encoder, {**ROW, "videos": ["clip"]}, folder)
    is_video = encoded.input_ids[0] == images.tokens.video
    assert is_video.sum() == images.tokens.num_tokens(encoded.media[0][0])
    assert not encoded.weights[0][is_video].any()


def test_settings_of_videos_come_from_the_files_that_transformers_reads(models, folder, tmp_path):
    """processor_config.json before video_preprocessor_config.json before preprocessor_config.json."""
    model = tmp_path / "model"
    shutil.copytree(models["qwen3_vl"], model)

    def least():
        return encoder_of(model)[1].settings.video["least"]

    assert least() == 64
    sizes = {"patch_size": 4, "size": {"shortest_edge": 96, "longest_edge": 4096}}
    (model / "video_preprocessor_config.json").write_text(json.dumps(sizes))
    assert least() == 96
    nested = {**sizes, "size": {"shortest_edge": 128, "longest_edge": 4096}}
    (model / "processor_config.json").write_text(json.dumps({"video_processor": nested}))
    assert least() == 128


def test_frames_stand_in_the_order_of_their_numbers(folder):
    assert [source[-10:] for source in open_frames("clip", [folder]).sources][-2:] == ["frame9.jpg", "rame10.jpg"]


def test_a_frame_is_not_taken_from_the_cache_of_a_picture(models, folder, tmp_path):
    """Videos are resized in another way than images, also where the same file is one of both of the same size."""
    row = {
        "query": "<image><video>What?",
        "response": "Nothing.",
        "images": ["clip/frame4.jpg"],
        "videos": [["clip/frame4.jpg"] * 2],
    }
    kept = encoder_of(models["qwen2_5_vl"], args=TrainArgs(image_cache_gib=0.01), cache=tmp_path / "cache")
    bare = encoder_of(models["qwen2_5_vl"])
    both = []
    for encoder, images in (kept, bare):
        media = encode(encoder, row, folder).media[0]
        assert media[0].size == media[1].size
        assert media[0].grid == media[1].grid
        both.append([images.reader.pixels([medium]).values_PD for medium in media])
    assert all(np.array_equal(one, other) for one, other in zip(*both, strict=True))
    assert list((tmp_path / "cache").rglob("*.rgb"))


def test_a_changed_frame_stops_training(models, folder, tmp_path):
    from megatron_trainer.failure import TrainingError

    shutil.copytree(folder / "clip", tmp_path / "clip")
    (tmp_path / "data.jsonl").write_text("")
    encoder, images = encoder_of(models["qwen3_vl"], args=TrainArgs(), cache=tmp_path / "cache")
    media = encode(encoder, {**ROW, "videos": ["clip"]}, tmp_path).media[0]
    vision.save(tmp_path / "clip" / "frame6.jpg", 20, 20)
    with pytest.raises(TrainingError, match="frame6.jpg has 20 x 20 pixels, not 41 x 27"):
        images.reader.pixels(media)
