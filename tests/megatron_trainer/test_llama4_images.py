"""Llama-4 with images: what is refused, what its record counts, the plan of its tower, and exports."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megatron_trainjob.args.model import check
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.families import of, read
from megatron_trainjob.memory import tower
from tests.support.matrix import mostly_slow
from tests.support.models import tiny_model
from tests.support.ranks import conversion
from tests.support.ranks.pool import gloo_ranks

RAW = tiny_model.raw_config("llama4")
LAYOUTS: dict[str, dict[str, Any]] = {
    "ep2": {"expert_model_parallel_size": 2},
    "tp2": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "pp2": {"pipeline_model_parallel_size": 2},
}


def violations(given: dict[str, Any], **changes: Any) -> list[str]:
    found = check.check({**RAW, **changes}, TrainArgs(model="m", **given)).violations
    return [f"{each.path} {each.message}" for each in found]


def of_tower(**changes: Any) -> dict[str, Any]:
    return {"vision_config": {**RAW["vision_config"], **changes}}


@pytest.mark.parametrize(
    ("given", "changes", "said"),
    [
        ({}, of_tower(image_size=18), "config.json:vision_config.image_size tiles must be a multiple of the 4 pixels"),
        ({}, of_tower(num_attention_heads=4), "config.json:vision_config.num_attention_heads must leave each head"),
        ({}, of_tower(num_attention_heads=5), "config.json:vision_config.num_attention_heads 5 heads of a tower of 24"),
        ({}, of_tower(projector_dropout=0.1), "config.json:vision_config.projector_dropout a tower is trained without"),
        ({}, of_tower(attention_dropout=0.1), "config.json:vision_config.attention_dropout a tower is trained without"),
        ({}, of_tower(pixel_shuffle_ratio=0.4), "config.json:vision_config.pixel_shuffle_ratio must be one over"),
        ({}, of_tower(pixel_shuffle_ratio=1 / 3), "config.json:vision_config.pixel_shuffle_ratio must be one over"),
        (
            {},
            of_tower(intermediate_size=48),
            "config.json:vision_config.intermediate_size must be 96: 4 merged patches",
        ),
        ({}, of_tower(projector_input_dim=48), "config.json:vision_config.projector_input_dim must equal"),
        ({}, of_tower(vision_output_dim=48), "config.json:vision_config.vision_output_dim must equal"),
        ({}, of_tower(patch_size=[4, 4]), "config.json:vision_config.patch_size must be a whole number above 0"),
        ({"min_pixels": 100}, {}, "spec.args.min_pixels an image has as many tiles as hold it without shrinking"),
        ({"model_kwargs": {"min_num": 2}}, {}, "spec.args.model_kwargs an image has as many tiles as hold it"),
        ({"norm_bbox": "none"}, {}, "spec.args.norm_bbox an image is cut into tiles"),
        ({"task_type": "seq_cls", "num_labels": 2}, {}, "spec.args.task_type a model with images is trained as"),
    ],
)
def test_what_is_not_trained_is_refused(given: dict[str, Any], changes: dict[str, Any], said: str):
    assert [each for each in violations(given, **changes) if each.startswith(said)]


def test_bounds_of_tiles_are_accepted():
    for given in ({"max_pixels": 16 * 16 * 3}, {"model_kwargs": {"max_num": 3}}):
        assert violations(given) == []


def test_the_token_of_an_image_goes_by_both_of_its_names():
    other = {key: value for key, value in RAW.items() if key != "image_token_index"}
    assert read({**other, "image_token_id": 7}).vision.image_token == 7
    assert read(RAW).vision.image_token == RAW["image_token_index"]


def test_a_file_keeps_its_form():
    """Keys of the whole model stand outside, also those of a file written by hand."""
    family = of(RAW)
    nested = family.nested({**RAW, "model_type": "llama4"})
    assert {"image_token_index", "boi_token_index", "eoi_token_index", "vision_config"} < nested.keys()
    assert nested["text_config"]["model_type"] == "llama4_text"
    assert not {"image_token_index", "vision_config"} & nested["text_config"].keys()
    assert family.stored(nested, family.flat(nested)) == nested


def test_the_record_counts_the_parameters_that_transformers_has():
    model = tiny_model.auto_class("llama4").from_config(tiny_model.config_of("llama4"))
    record = read(RAW)
    assert record.num_parameters == model.num_parameters()
    sizes = {name: p.numel() for name, p in model.named_parameters() if not name.startswith("language_model.")}
    assert record.vision.num_parameters == sum(sizes.values())
    assert record.vision.num_aligner_parameters() == sizes["multi_modal_projector.linear_1.weight"]
    assert record.vision.tensors.keys() == sizes.keys()


def test_the_plan_counts_the_tower_and_what_of_it_trains():
    vision = read(RAW).vision
    free = TrainArgs(model="m", train_type="full", freeze_vit=False, freeze_aligner=False)
    assert tower.trained_parameters(free, vision) == vision.num_parameters
    assert tower.trained_parameters(TrainArgs(model="m", train_type="full", freeze_aligner=False), vision) == 64 * 40
    adapted = TrainArgs(model="m", train_type="lora", target_modules=("all-linear",), freeze_aligner=False)
    assert tower.trained_parameters(adapted, vision) == adapted.lora_rank * (64 + 40)
    few, many = (
        tower.activation_bytes(
            TrainArgs(model="m", train_type="full", freeze_vit=False, model_kwargs={"max_num": most}),
            vision,
            samples=1,
            tokens=4096,
            element_bytes=2,
        )
        for most in (1, 4)
    )
    assert many == 5 * few


@pytest.mark.dist
@pytest.mark.parametrize("layout", mostly_slow(LAYOUTS, ["ep2"]))
def test_an_export_is_that_of_the_source_bit_by_bit(layout, model_root, tmp_path):
    source = tiny_model.make("llama4", model_root, dtype="bfloat16")
    gloo_ranks(2).run(conversion.convert, source, tmp_path / "out", LAYOUTS[layout])
    before = load_file(source / "model.safetensors")
    after = {name: t for file in (tmp_path / "out").glob("*.safetensors") for name, t in load_file(file).items()}
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    first, second = (json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path / "out"))
    assert first == second
    load = tiny_model.auto_class("llama4").from_pretrained
    theirs = dict(load(tmp_path / "out").state_dict())
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in load(source).state_dict().items())
