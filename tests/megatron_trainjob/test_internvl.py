"""InternVL's config.json: which text model is inside, what of its tower is refused, and how its tensors are named."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_trainjob import families
from megatron_trainjob.args import rules
from megatron_trainjob.args.model.check import check
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.families.vision import BESIDE, OF_PARTS
from megatron_trainjob.families.weights import in_table, outside

ARGS = TrainArgs(model="m", dataset=("d",), train_iters=1, max_length=64)
TEXT = {
    "model_type": "qwen2",
    "vocab_size": 151674,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
}
VISION = {"model_type": "internvl_vision", "attention_bias": True, "hidden_size": 1024, "image_size": [448, 448]}
RAW: dict[str, Any] = {
    "architectures": ["InternVLForConditionalGeneration"],
    "model_type": "internvl",
    "image_token_id": 151667,
    "text_config": TEXT,
    "vision_config": VISION,
}


def said(raw, args=ARGS):
    return {violation.path.removeprefix("config.json:"): violation.message for violation in check(raw, args).violations}


def test_a_published_file_is_read():
    found = check(RAW, ARGS)
    assert found.violations == ()
    model = found.model
    assert (model.family, model.tied, model.rotary.kind) == ("internvl", False, "dynamic")
    assert (model.vision.tile, model.vision.patches_per_tile, model.vision.merge_size) == (448, 1024, 2)
    assert model.vision.num_parameters == pytest.approx(3.09e8, rel=0.01)
    assert model.num_parameters == pytest.approx(0.94e9, rel=0.02)


@pytest.mark.parametrize(
    ("inner", "key"),
    [("qwen2", ""), ("qwen3", "_qwen3"), ("qwen3_moe", "_qwen3_moe"), ("gpt_oss", "_gpt_oss")],
)
def test_the_text_model_inside_determines_the_record(inner, key):
    raw = {**RAW, "text_config": {"model_type": inner}}
    family = families.of(raw)
    assert family.model_type == f"internvl{key}"
    flat = family.flat(raw)
    assert families.of(flat) is family
    assert family.flat(flat) == flat
    whole = family.nested(flat)
    assert (whole["model_type"], whole["text_config"]["model_type"]) == ("internvl", inner)
    assert "downsample_ratio" not in whole["text_config"]


def test_a_default_scaling_does_not_replace_the_one_inside():
    scaling = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 64}
    raw = {**RAW, "text_config": {"model_type": "gpt_oss", "rope_parameters": scaling}}
    assert families.read(raw).rotary.parameters["factor"] == 4.0


def test_another_text_model_is_refused_with_those_that_are_trained():
    message = said({**RAW, "text_config": {"model_type": "internlm2"}})["text_config.model_type"]
    assert message.endswith("those that are: qwen2, qwen3, qwen3_moe, gpt_oss")


@pytest.mark.parametrize(
    ("outer", "tower", "path"),
    [
        ({}, {"image_size": [448, 336]}, "vision_config.image_size"),
        ({}, {"image_size": 450}, "vision_config.image_size"),
        ({}, {"patch_size": "14"}, "vision_config.patch_size"),
        ({"downsample_ratio": 0.3}, {}, "downsample_ratio"),
        ({"downsample_ratio": 2.0}, {}, "downsample_ratio"),
        ({}, {"norm_type": "batch_norm"}, "vision_config.norm_type"),
        ({}, {"attention_dropout": 0.1}, "vision_config.attention_dropout"),
        ({}, {"use_mask_token": True}, "vision_config.use_mask_token"),
        ({}, {"num_attention_heads": 12}, "vision_config.num_attention_heads"),
        ({"vision_feature_layer": -2}, {}, "vision_feature_layer"),
        ({"vision_feature_layer": [1, 2]}, {}, "vision_feature_layer"),
        ({"vision_feature_select_strategy": "full"}, {}, "vision_feature_select_strategy"),
    ],
    ids=str,
)
def test_towers_that_would_be_trained_otherwise_are_refused(outer, tower, path):
    assert path in said({**RAW, **outer, "vision_config": {**VISION, **tower}})


def test_one_side_stands_for_a_square():
    vision = check({**RAW, "vision_config": {**VISION, "image_size": 224, "patch_size": 14}}, ARGS).model.vision
    assert (vision.tile, vision.patch_size) == (224, 14)


def test_coordinates_of_a_resized_image_are_refused():
    found = said(RAW, TrainArgs(norm_bbox="none"))
    assert found["spec.args.norm_bbox"].endswith("use norm1000")


def test_the_first_form_is_refused_with_the_name_of_the_other():
    assert "OpenGVLab/InternVL3-8B-hf" in said({"model_type": "internvl_chat"})["model_type"]
    known = {"InternVL3-8B": True, "InternVL3_5-GPT-OSS-20B-A4B-Preview": True, "InternVL3_5-241B-A28B-Instruct": True}
    for model, is_told in {
        **known,
        **dict.fromkeys(("InternVL3-8B-hf", "InternVL3_5-8B-HF", "internvl-ours"), False),
    }.items():
        found = rules.check(TrainArgs(model=f"OpenGVLab/{model}"), frozenset({"model"}), task="sft", path="")
        assert any("-hf behind its name" in each.message for each in found) == is_told, model


NAMES = {
    "language_model.model.layers.1.mlp.up_proj.weight": "model.layers.1.mlp.up_proj.weight",
    "language_model.lm_head.weight": "lm_head.weight",
    "vision_tower.embeddings.cls_token": "visual.vision_tower.embeddings.cls_token",
    "multi_modal_projector.linear_1.bias": "visual.multi_modal_projector.linear_1.bias",
}


def test_tensors_are_found_by_the_names_of_files_and_of_objects():
    for stored, own in NAMES.items():
        assert in_table(stored) == own
        assert outside(own, BESIDE) == stored
        assert in_table(outside(own, OF_PARTS)) == own
    assert outside("visual.vision_tower.x", OF_PARTS) == "model.vision_tower.x"
    assert outside("lm_head.weight", OF_PARTS) == "lm_head.weight"
