"""Llama-4's text decoder where its attention is the ordinary one, its experts in one tensor, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megatron_trainjob.args import rules
from megatron_trainjob.args.model import check
from megatron_trainjob.args.tree import TrainArgs
from tests.support.matrix import mostly_slow
from tests.support.models import tiny_model
from tests.support.ranks import conversion, parity
from tests.support.ranks.pool import gloo_ranks

LAYOUTS: dict[str, dict[str, Any]] = {
    "ep2": {"expert_model_parallel_size": 2},
    "tp2": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "pp2": {"pipeline_model_parallel_size": 2},
}


def violations(given: dict[str, Any], **changes: Any) -> list[str]:
    raw = {**tiny_model.raw_config("llama4_text"), **changes}
    return [f"{each.path} {each.message}" for each in check.check(raw, TrainArgs(model="m", **given)).violations]


@pytest.mark.dist
def test_up_to_the_last_ordinary_token_logits_and_gradients_are_transformers(model_root):
    """Rows of 96 tokens fill a chunk, and end one token before the temperature changes."""
    limits = {"attention_chunk_size": parity.NUM_TOKENS, "floor_scale": parity.NUM_TOKENS + 1}
    directory = tiny_model.make("llama4_text", model_root, **limits)
    parity.make_reference(directory, packed=False)
    (found,) = gloo_ranks(1).run(parity.compare, directory, {"max_length": parity.NUM_TOKENS})
    assert found.logits <= 1e-5
    assert found.gradients <= 1e-5, found.worst


@pytest.mark.parametrize(
    ("changes", "longest"),
    [
        ({"attention_chunk_size": 64, "floor_scale": 200}, 64),
        ({"attention_chunk_size": 200, "floor_scale": 64}, 63),
        ({"attention_chunk_size": None, "floor_scale": 64}, 63),
        ({"attention_chunk_size": 64, "attn_temperature_tuning": False}, 64),
        ({"attention_chunk_size": 200, "floor_scale": 64, "no_rope_layers": [1, 1, 1, 1]}, 200),
        ({"attention_chunk_size": 8, "floor_scale": 64, "no_rope_layers": [0, 0, 0, 0]}, 63),
    ],
)
def test_longer_sequences_than_ordinary_attention_has_are_refused(changes, longest):
    assert violations({"max_length": longest}, **changes) == []
    (found,) = violations({"max_length": longest + 1}, **changes)
    assert found.startswith(f"spec.args.max_length beyond {longest} tokens")


def test_a_model_whose_attention_is_the_same_at_any_length_has_no_limit():
    changes = {"attention_chunk_size": None, "attn_temperature_tuning": False}
    assert violations({"max_length": 100_000}, **changes) == []


def test_more_than_one_expert_a_token_is_refused():
    (found,) = violations({}, num_experts_per_tok=2)
    assert "config.json:num_experts_per_tok the input of an expert is scaled" in found


@pytest.mark.dist
@pytest.mark.parametrize("layout", mostly_slow(LAYOUTS, ["ep2"]))
def test_an_export_has_the_tensors_of_the_source_bit_by_bit(layout, model_root, tmp_path):
    source = tiny_model.make("llama4_text", model_root, dtype="bfloat16")
    gloo_ranks(2).run(conversion.convert, source, tmp_path / "out", LAYOUTS[layout])
    before = load_file(source / "model.safetensors")
    after = {name: t for file in (tmp_path / "out").glob("*.safetensors") for name, t in load_file(file).items()}
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("internvl_chat", "InternVL in its first form"),
        ("gemma4_unified", "Gemma4UnifiedForCausalLM.from_pretrained and save_pretrained"),
    ],
)
def test_a_family_that_is_known_and_not_trained_is_refused_with_what_is_missing(kind, said):
    found = check.check({"model_type": kind}, TrainArgs(model="m"))
    assert not found.is_known
    (violation,) = found.violations
    assert violation.path == "config.json:model_type"
    assert said in violation.message


@pytest.mark.parametrize(
    ("model", "is_warned"),
    [
        ("google/gemma-4-E4B-it", True),
        ("google/gemma-4-26B-A4B-it", False),
        ("LLM-Research/Llama-4-Scout-17B-16E-Instruct", False),
        ("google/gemma-2-9b", False),
        ("me/distilled-from-gemma-4", False),
    ],
)
def test_a_name_of_such_a_family_is_warned_of_where_nothing_else_is_known(model, is_warned):
    args = TrainArgs(model=model, dataset=("d",), train_iters=1, use_hf=True)
    found = rules.check(args, frozenset(), task="sft", world_size=1)
    named = [each for each in found if "by its name" in each.message]
    assert [each.severity for each in named] == ["warning"] * is_warned
