"""Gemma-4 with images: which tokens see which, what is refused, what its record counts, and exports."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from megatron_trainer.models.whole_images import closed, last_seen, opened
from megatron_trainjob.args.model import check
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.families import read
from megatron_trainjob.memory import tower
from tests.support.models import tiny_model
from tests.support.ranks import conversion
from tests.support.ranks.pool import gloo_ranks

NAMES = ("gemma4", "gemma4_causal")
LAYOUTS: dict[str, dict[str, Any]] = {
    "ep2": {"expert_model_parallel_size": 2},
    "tp2": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "pp2": {"pipeline_model_parallel_size": 2},
}


def violations(given: dict[str, Any], **changes: Any) -> list[str]:
    raw = {**tiny_model.raw_config("gemma4"), **changes}
    return [f"{each.path} {each.message}" for each in check.check(raw, TrainArgs(model="m", **given)).violations]


def of_tower(**changes: Any) -> dict[str, Any]:
    return {"vision_config": {**tiny_model.raw_config("gemma4")["vision_config"], **changes}}


def test_a_token_of_an_image_sees_the_image_to_its_end():
    is_image = torch.tensor([[0, 1, 1, 0, 1, 0], [1, 1, 0, 0, 1, 1]]).bool()
    assert last_seen(is_image, None).tolist() == [[0, 2, 2, 3, 4, 5], [1, 1, 2, 3, 5, 5]]


def test_images_at_the_edges_of_packed_sequences_stay_apart():
    is_image = torch.tensor([[0, 1, 1, 1, 1, 0]]).bool()
    assert last_seen(is_image, None).tolist() == [[0, 4, 4, 4, 4, 5]]
    assert last_seen(is_image, torch.tensor([0, 3, 6])).tolist() == [[0, 2, 2, 4, 4, 5]]


def test_a_mask_is_opened_for_images_and_closed_for_other_layers():
    """The second row is padded on the left."""
    future = torch.ones(4, 4).bool().triu(1)
    padded = (future | torch.tensor([True, False, False, False])) & ~torch.eye(4).bool()
    mask = torch.stack([future, padded])[:, None]
    last = last_seen(torch.tensor([[0, 1, 1, 1], [0, 0, 1, 1]]).bool(), None)
    seen = ~opened(mask, last)[:, 0]
    assert seen.int().tolist() == [
        [[1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]],
        [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 1], [0, 1, 1, 1]],
    ]
    assert torch.equal(closed(opened(mask, last)), mask)
    assert closed(last) is None


@pytest.mark.parametrize(
    ("given", "changes", "said"),
    [
        ({}, {"image_token_id": None}, "config.json:image_token_id must be the token"),
        ({}, {"audio_config": {"hidden_size": 8}}, "config.json:audio_config the tower for sound is not trained here"),
        ({}, {"hidden_size_per_layer_input": 8}, "config.json:hidden_size_per_layer_input embeddings that enter"),
        ({}, {"use_bidirectional_attention": "all"}, "config.json:use_bidirectional_attention lets every token"),
        ({}, of_tower(num_attention_heads=3, num_key_value_heads=2), "config.json:vision_config.num_key_value_heads 3"),
        ({}, of_tower(head_dim=6), "config.json:vision_config.head_dim must be a multiple of 4"),
        ({}, of_tower(attention_dropout=0.1), "config.json:vision_config.attention_dropout a tower is trained without"),
        (
            {},
            of_tower(rope_parameters={"rope_type": "default", "rope_theta": 100.0}),
            "config.json:vision_config.rope_parameters.rope_type must be axial",
        ),
        ({}, of_tower(standardize=1), "config.json:vision_config.standardize must be true or false"),
        ({"min_pixels": 100}, {}, "spec.args.min_pixels every image is scaled to as many tokens"),
        ({"max_pixels": 4479}, {}, "spec.args.max_pixels an image has at least 70 tokens of 8 x 8 pixels; set 4480"),
        ({"model_kwargs": {"image_max_token_num": 69}}, {}, "spec.args.model_kwargs an image has at least 70 tokens"),
        (
            {"max_pixels": 560 * 64},
            of_tower(position_embedding_size=40),
            "config.json:vision_config.position_embedding_size has fewer positions than a square image has patches "
            "along a side (46), so that all are dropped; lower max_pixels",
        ),
        (
            {},
            of_tower(position_embedding_size=15),
            "config.json:vision_config.position_embedding_size has fewer positions than a square image has patches "
            "along a side (16), so that all are dropped; use another model",
        ),
        ({"task_type": "seq_cls", "num_labels": 2}, {}, "spec.args.task_type a model with images is trained as"),
    ],
)
def test_what_is_not_trained_is_refused(given: dict[str, Any], changes: dict[str, Any], said: str):
    assert [each for each in violations(given, **changes) if each.startswith(said)]


def test_a_file_without_a_tower_is_no_model_with_images():
    """transformers makes a text model of it."""
    raw = {key: value for key, value in tiny_model.raw_config("gemma4").items() if key != "vision_config"}
    found = check.check(raw, TrainArgs(model="m")).violations
    assert [each.path for each in found] == ["config.json:vision_config"]


def test_a_bound_that_can_be_kept_is_accepted():
    assert violations({"max_pixels": 4480}) == []
    assert violations({"model_kwargs": {"image_max_token_num": 300}}) == []


@pytest.mark.parametrize("name", NAMES)
def test_the_record_counts_the_parameters_that_transformers_has(name: str):
    """The sizes that are stored and do not train are counted by neither, but for the factors of layers."""
    model = AutoModelForImageTextToText.from_config(tiny_model.config_of(name))
    scalars = sum(buffer.numel() for key, buffer in model.named_buffers() if key.endswith("layer_scalar"))
    record = read(tiny_model.raw_config(name))
    assert record.num_parameters == model.num_parameters() + scalars
    of_object = sum(p.numel() for key, p in model.named_parameters() if "vision" in key)
    assert record.vision.num_parameters == of_object


def test_the_plan_counts_the_tower_and_what_of_it_trains():
    vision = read(tiny_model.raw_config("gemma4")).vision
    aligner = 64 * 32
    free = TrainArgs(model="m", train_type="full", freeze_vit=False, freeze_aligner=False)
    assert tower.trained_parameters(free, vision) == vision.num_parameters
    assert vision.num_aligner_parameters() == aligner
    assert tower.trained_parameters(TrainArgs(model="m", train_type="full", freeze_aligner=False), vision) == aligner
    adapted = TrainArgs(model="m", train_type="lora", target_modules=("all-linear",), freeze_aligner=False)
    assert tower.trained_parameters(adapted, vision) == adapted.lora_rank * (64 + 32)


@pytest.mark.dist
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_export_is_that_of_the_source_bit_by_bit(layout, model_root, tmp_path):
    source = tiny_model.make("gemma4", model_root, dtype="bfloat16")
    gloo_ranks(2).run(conversion.convert, source, tmp_path / "out", LAYOUTS[layout])
    before = load_file(source / "model.safetensors")
    after = {name: t for file in (tmp_path / "out").glob("*.safetensors") for name, t in load_file(file).items()}
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    first, second = (AutoModelForImageTextToText.from_pretrained(folder) for folder in (source, tmp_path / "out"))
    theirs = dict(second.state_dict())
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in first.state_dict().items())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "gemma4"
