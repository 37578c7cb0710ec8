"""Rows with images become the tokens and pixels that transformers' own processor makes of them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from megatron_trainer.data.conversation.formats import Recognition
from megatron_trainer.data.encoding.encode import Encoded, Encoder, EncodeSettings
from megatron_trainjob.args.tree import TrainArgs
from tests.support.data import vision
from tests.support.data.image_rows import SIZES, encode, encoder_of, pictures, text, turns

KINDS = ("qwen2_5_vl", "qwen3_vl", "qwen3_5", "internvl", "glm4v", "gemma4", "gemma4_v2", "llama4")
GLM = ("glm4v", "glm4v_moe")
FILMED = ("qwen2_5_vl", "qwen3_vl", "internvl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {kind: vision.write(root / kind, kind) for kind in {*KINDS, *GLM}}


def truth(model, kind, messages, folder, names):
    """(ids, pixel values, grid) of transformers' processor."""
    from transformers.image_utils import load_image

    whole = vision.processor(model, kind)
    shown = whole.apply_chat_template(messages, tokenize=False)
    kinds = "pt" if kind == "llama4" else "np"  # which has no bfloat16
    made = whole(text=[shown], images=[load_image(str(folder / name)) for name in names], return_tensors=kinds)
    if vision.is_gemma(kind):
        places = made["image_position_ids"]
        values = [row[at[:, 0] >= 0] for row, at in zip(made["pixel_values"], places, strict=True)]
        grids = [(1, at[:, 1].max() + 1, at[:, 0].max() + 1) for at in places]
        return made["input_ids"][0].tolist(), np.concatenate(values), np.array(grids)
    if kind == "llama4":
        ids = made["input_ids"][0].tolist()
        patch = whole.tokenizer.convert_tokens_to_ids("<|patch|>")
        ends = np.flatnonzero(np.array(ids) == whole.tokenizer.convert_tokens_to_ids("<|image_end|>"))
        counts = np.diff([0, *(ids[:end].count(patch) // 4 for end in ends)])
        return ids, made["pixel_values"].float().numpy().reshape(-1, 48), np.array([[count, 4, 4] for count in counts])
    if vision.is_cut(kind):
        counts = [
            whole.image_processor.get_number_of_image_patches(*reversed(SIZES[name]), {"crop_to_patches": True})
            for name in names
        ]
        return (
            made["input_ids"][0].tolist(),
            made["pixel_values"].reshape(-1, 48),
            np.array([[n, 4, 4] for n in counts]),
        )
    return made["input_ids"][0].tolist(), made["pixel_values"], made["image_grid_thw"]


ONE = turns(text(..., "What is it?"))
ROWS = {
    "a tag": ({"query": "<image>What is it?", "response": "Yes.", "images": ["a.png"]}, ONE, ["a.png"]),
    "no tag": ({"query": "What is it?", "response": "Yes.", "images": ["b.jpg"]}, ONE, ["b.jpg"]),
    "one image, not in a list": ({"query": "<image>What is it?", "response": "Yes.", "image": "a.png"}, ONE, ["a.png"]),
    "an object": (
        {"query": "<image>What is it?", "response": "Yes.", "images": [{"path": "a.png", "bytes": None}]},
        ONE,
        ["a.png"],
    ),
    "two in the middle": (
        {"query": "Here <image> and\n<image>\nthere", "response": "Yes.", "images": ["a.png", "c.png"]},
        turns(text("Here ", ..., " and\n", ..., "\nthere")),
        ["a.png", "c.png"],
    ),
    "several turns, one without": (
        {
            "messages": [
                {"role": "system", "content": "Look."},
                {"role": "user", "content": "<image>A?"},
                {"role": "assistant", "content": "a"},
                {"role": "user", "content": "And?"},
                {"role": "assistant", "content": "b"},
                {"role": "user", "content": "<image><image>?"},
                {"role": "assistant", "content": "Yes."},
            ],
            "images": ["a.png", "b.jpg", "a.png"],
        },
        [
            {"role": "system", "content": "Look."},
            *turns(text(..., "A?"), "a"),
            *turns(text("And?"), "b"),
            *turns(text(..., ..., "?")),
        ],
        ["a.png", "b.jpg", "a.png"],
    ),
    "parts of OpenAI": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "<image> is a tag: "},
                        {"type": "image_url", "image_url": {"url": "b.jpg"}},
                        {"type": "text", "text": "?"},
                    ],
                },
                {"role": "assistant", "content": "Yes."},
            ]
        },
        turns(text("<image> is a tag: ", ..., "?")),
        ["b.jpg"],
    ),
    "parts without a source take the column": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}, {"type": "image"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
            ],
            "images": ["c.png", "a.png"],
        },
        turns(text(..., "?", ...)),
        ["c.png", "a.png"],
    ),
    "messages as JSON text": (
        {
            "messages": json.dumps(
                [
                    {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "?"}]},
                    {"role": "assistant", "content": "Yes."},
                ]
            )
        },
        turns(text(..., "?")),
        ["a.png"],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ROWS)
def test_tokens_and_pixels_are_those_of_transformers(models, folder, kind, name):
    row, messages, names = ROWS[name]
    ids, values, grid = truth(models[kind], kind, messages, folder, names)
    encoder, images = encoder_of(models[kind])
    encoded = encode(encoder, row, folder)
    assert isinstance(encoded, Encoded), encoded
    assert encoded.input_ids[0].tolist() == ids
    pixels = images.reader.pixels(encoded.media[0])
    assert pixels.grid_N3.tolist() == grid.tolist()
    assert np.array_equal(pixels.values_PD, values)
    assert pixels.values_PD.dtype == np.float32


def test_images_carry_no_loss_even_where_everything_is_trained(models, folder):
    encoder, images = encoder_of(models["qwen2_5_vl"], loss_scale="all")
    encoded = encode(encoder, ROWS["two in the middle"][0], folder)
    is_image = encoded.input_ids[0] == images.tokens.image
    assert is_image.sum() == sum(images.tokens.num_tokens(medium) for medium in encoded.media[0])
    assert not encoded.weights[0][is_image].any()
    is_around = np.isin(encoded.input_ids[0], [images.tokens.start, images.tokens.end])
    assert (encoded.weights[0][1:] == ~(is_image | is_around)[1:]).all()


@pytest.mark.parametrize(("kind", "tag"), [*((kind, "<image>") for kind in KINDS), *((k, "<video>") for k in FILMED)])
def test_nothing_that_stands_for_an_image_carries_loss(models, folder, kind, tag):
    """Neither do the tokens around it, the line breaks of templates, separators of tiles, nor times of frames."""
    encoder, _ = encoder_of(models[kind], loss_scale="all", use_chat_template=False)
    row = {"text": f"See {tag}!", "images": ["a.png"]}
    if tag == "<video>":
        row = {"text": f"See {tag}!", "videos": [["a.png"] * 4]}
    encoded = encode(encoder, row, folder)
    trained = vision.tokenizer(kind).decode(encoded.input_ids[0][encoded.weights[0] > 0])
    assert "".join(trained.split()) in ("ee!<|im_end|>", "ee!<turn|>"), "nothing predicts the first token"


def test_the_answer_alone_is_trained(models, folder):
    encoder, _ = encoder_of(models["qwen2_5_vl"])
    encoded = encode(encoder, ROWS["two in the middle"][0], folder)
    trained = encoded.input_ids[0][encoded.weights[0] > 0]
    assert vision.tokenizer().decode(trained) == "Yes.<|im_end|>"


def test_pre_training_has_images_in_plain_text(models, folder):
    encoder, images = encoder_of(models["qwen2_5_vl"], loss_scale="all", use_chat_template=False)
    encoded = encode(encoder, {"text": "See <image>!", "images": ["a.png"]}, folder)
    shown = vision.tokenizer().decode(encoded.input_ids[0])
    count = images.tokens.num_tokens(encoded.media[0][0])
    assert shown == f"See <|vision_start|>{'<|image_pad|>' * count}<|vision_end|>!<|im_end|>"


@pytest.mark.parametrize("kind", GLM)
def test_glm_bounds_the_pixels_of_an_image_and_has_no_videos(kind, models, folder):
    """Its processor counts the two frames that an image becomes."""
    row = {"query": "<image>?", "response": "Yes.", "images": ["a.png"]}
    for bounds in ({"max_pixels": 400}, {"min_pixels": 4000}):
        encoder, images = encoder_of(models[kind], args=TrainArgs(**bounds))
        [medium] = encode(encoder, row, folder).media[0]
        pixels = medium.grid[1] * medium.grid[2] * 16
        assert pixels <= bounds.get("max_pixels", pixels)
        assert pixels >= bounds.get("min_pixels", 0), "also beyond the model's own most"
        assert images.reader.pixels([medium]).values_PD.shape == (pixels // 16, 96)
    films = {"query": "<video>?", "response": "Yes.", "videos": [["a.png", "a.png"]]}
    assert encode(encoder, films, folder).reason == "videos are not read for this model"


def test_text_alone_stays_as_it_is(models, folder):
    encoder, _ = encoder_of(models["qwen2_5_vl"])
    plain = Encoder(vision.tokenizer(), EncodeSettings())
    for row in ({"query": "<image>?", "response": "Yes."}, {"query": "?", "response": "<bbox>", "images": []}):
        seen, unseen = encode(encoder, row, folder), encode(plain, row, folder)
        assert seen.input_ids[0].tolist() == unseen.input_ids[0].tolist()
        assert seen.media == ()
        has_tag = "<image>" in row["query"]
        assert any("stays as it is" in note for note in seen.notes) == has_tag


def test_text_models_refuse_images(folder):
    plain = {"query": "?", "response": "Yes.", "rejected_response": "No."}
    for name in ("images", "rejected_images"):
        encoder = Encoder(vision.tokenizer(), EncodeSettings(recognition=Recognition(needs_rejected="_" in name)))
        assert encode(encoder, {**plain, name: ["a.png"]}, folder).reason == "only text can be trained on"


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_cut_keeps_whole_images_only(models, folder, side):
    row = {
        "messages": [
            *({"role": "user", "content": "<image>A?"}, {"role": "assistant", "content": "a" * 20}),
            *({"role": "user", "content": "<image>B?"}, {"role": "assistant", "content": "b" * 20}),
        ],
        "images": ["a.png", "b.jpg"],
    }
    whole = encode(encoder_of(models["qwen2_5_vl"])[0], row, folder)
    length, lost = len(whole.input_ids[0]), 0
    for limit in range(40, length, 3):
        encoder, images = encoder_of(models["qwen2_5_vl"], max_length=limit, truncation_strategy=side)
        cut = encode(encoder, row, folder)
        if not isinstance(cut, Encoded):
            assert cut.reason == "no trained token is left after truncation"
            continue
        media = cut.media[0] if cut.media else ()
        ids = cut.input_ids[0]
        lost += len(media) < 2
        assert len(ids) <= limit
        assert (ids == images.tokens.image).sum() == sum(images.tokens.num_tokens(medium) for medium in media)
        assert (ids == images.tokens.start).sum() == (ids == images.tokens.end).sum() == len(media)
        assert media == (whole.media[0][-len(media) :] if side == "left" else whole.media[0][: len(media)]) or not media
        assert cut.is_truncated
    assert lost


def test_a_pair_shares_its_images_or_has_its_own(models, folder):
    pairs = Recognition(needs_rejected=True)
    encoder, _ = encoder_of(models["qwen2_5_vl"], pairs)
    row = {"query": "<image>?", "response": "Yes.", "rejected_response": "No.", "images": ["a.png"]}
    chosen, rejected_ = encode(encoder, row, folder).media
    assert chosen == rejected_
    other = {**row, "rejected_response": "Yes.", "rejected_images": ["b.jpg"]}
    chosen, rejected_ = encode(encoder, other, folder).media
    assert chosen[0].size == (24, 40)
    assert rejected_[0].size == (47, 33)
    assert "nothing reads the column rejected_images" not in encode(encoder, other, folder).notes
    alone = encode(encoder, {**other, "images": []}, folder)
    assert alone.detail == "0 in its column, and more places <image>"
    lists = {
        "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}],
        "chosen": [{"role": "assistant", "content": "Yes."}],
        "rejected": [{"role": "assistant", "content": "No."}],
        "images": ["a.png"],
    }
    listed = encode(encoder, lists, folder)
    assert isinstance(listed, Encoded), listed
    plain = encode(encoder, row, folder)
    assert [ids.tolist() for ids in listed.input_ids] == [ids.tolist() for ids in plain.input_ids]


def test_images_of_a_rejected_answer_do_not_count_where_it_is_not_read(models, folder):
    encoder, _ = encoder_of(models["qwen2_5_vl"])
    row = {"query": "<image>?", "response": "Yes.", "images": ["a.png"], "rejected_images": ["gone.png"]}
    encoded = encode(encoder, row, folder)
    assert isinstance(encoded, Encoded), encoded
    assert encoded.notes == ("nothing reads the column rejected_images",)


def test_an_image_with_more_patches_than_positions_is_dropped(folder, tmp_path):
    """The tower looks positions up, so that transformers fails with an index where the image is used."""
    model = vision.write(tmp_path, "gemma4")
    config = json.loads((model / "config.json").read_text())
    config["vision_config"]["position_embedding_size"] = 30
    (model / "config.json").write_text(json.dumps(config))
    encoder, _ = encoder_of(model)
    row = {"messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "yes"}]}
    assert encode(encoder, {**row, "images": ["a.png"]}, folder).media[0][0].grid == (1, 12, 20)
    dropped = encode(encoder, {**row, "images": ["c.png"]}, folder)
    assert dropped.reason == "an image is too narrow for the model"
    assert dropped.detail == ("9 x 90 pixels become 4 x 52 patches, and the tower has positions for 30 along a side")
