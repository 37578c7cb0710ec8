"""Freezing on real models: the same parameters train in every layout, and what trains gets its gradient."""

import pytest
import torch

from tests.support.models import tiny_model
from tests.support.ranks import lora_behavior
from tests.support.ranks.lora_ranks import LAYOUTS
from tests.support.ranks.pool import gloo_ranks

pytestmark = pytest.mark.dist


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def ranks(function, layout, *args, **given):
    size = 1 if layout == "TP1" else 2
    return gloo_ranks(size).run(function, *args, **{**LAYOUTS[layout], **given})


@pytest.mark.parametrize(
    ("name", "layouts", "given"),
    [
        ("llama", ("TP2", "TP2+SP"), {"freeze_parameters_ratio": 0.5}),
        ("llama", ("PP2",), {"freeze_parameters": ("embedding", "decoder.layers.0", "decoder.layers.3")}),
        ("llama_tied", ("TP2", "PP2"), {"freeze_parameters_regex": ".", "trainable_parameters": ("embedding",)}),
        (
            "qwen3_moe",
            ("EP2",),
            {"freeze_parameters_regex": r"experts\.\d\.linear_fc1", "freeze_parameters_ratio": 0.3},
        ),
        ("qwen3_moe", ("EP2", "TP2+SP"), {"freeze_parameters_ratio": 0.6}),
    ],
    ids=str,
)
def test_the_same_parameters_train_in_every_layout(root, name, layouts, given):
    directory = str(tiny_model.make(name, root))
    (expected,) = ranks(lora_behavior.trainable_after_freeze, "TP1", directory, **given)
    assert expected
    for layout in layouts:
        assert set().union(*ranks(lora_behavior.trainable_after_freeze, layout, directory, **given)) == set(expected)


def test_several_ranks_freeze_all_experts_of_a_layer_or_none(root):
    """A checkpoint of theirs could not be saved: the optimizer state of some experts would be missing from a stack."""
    directory = str(tiny_model.make("qwen3_moe", root))
    for violations in ranks(
        lora_behavior.refusal, "EP2", directory, freezing=True, freeze_parameters_regex=r"experts\.(0|3)\."
    ):
        ((argument, message),) = violations
        assert argument == "freeze_parameters_regex"
        assert "local_experts.linear_fc1.weight of some experts" in message


@pytest.mark.parametrize("layout", ["TP1", pytest.param("EP2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("regex", [r"fc1\.weight0$", r"weight1$"])
def test_experts_in_one_module_freeze_together_on_one_rank_too(root, layout, regex):
    """TransformerEngine computes gradients of all of them or none, as the first says."""
    directory = str(tiny_model.make("qwen3_moe", root))
    given = {"freezing": True, "in_one_module": True}
    for violations in ranks(lora_behavior.refusal, layout, directory, **given, freeze_parameters_regex=regex):
        ((argument, message),) = violations
        assert argument == "freeze_parameters_regex"
        assert "weight of some experts" in message
    for ratio in (0.3, 0.6):
        for none in ranks(lora_behavior.refusal, layout, directory, **given, freeze_parameters_ratio=ratio):
            assert none == []


def test_a_bias_beside_a_frozen_weight_gets_its_gradient(root):
    """Megatron's linear with a frozen weight gives its bias none."""
    directory = str(tiny_model.make("llama_bias", root))
    for layout in ("TP1", "TP2+SP"):
        everything = ranks(lora_behavior.gradients, layout, directory, freezing=True)
        biases = ranks(lora_behavior.gradients, layout, directory, freezing=True, freeze_parameters_regex="weight$")
        for one, other in zip(biases, everything, strict=True):
            assert {name.rsplit(".", 1)[1] for name in one} == {"bias"}
            for name, gradient in one.items():
                assert gradient.abs().max() > 0, name
                torch.testing.assert_close(gradient, other[name], rtol=1e-4, atol=1e-7)


def test_recomputed_layers_train_above_a_frozen_embedding(root):
    directory = str(tiny_model.make("llama", root))
    given = {"freezing": True, "freeze_parameters": ("embedding",)}
    full = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 2}
    (plain,) = ranks(lora_behavior.gradients, "TP1", directory, **given)
    (recomputed,) = ranks(lora_behavior.gradients, "TP1", directory, **given, **full)
    assert "decoder.layers.0.mlp.linear_fc1.weight" in plain
    for name, gradient in plain.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-5, atol=1e-7)


def test_names_that_match_nothing_and_freezing_all_are_refused_on_all_ranks(root):
    directory = str(tiny_model.make("llama", root))
    wrong = {"freeze_parameters": ("model.layers", "decoder"), "trainable_parameters_regex": "lm_head"}
    for violations in ranks(lora_behavior.refusal, "PP2", directory, freezing=True, **wrong):
        assert [argument for argument, _ in violations] == ["freeze_parameters", "trainable_parameters_regex"]
        assert violations[0][1] == (
            "matches no parameter of this model; names begin with "
            "decoder.final_layernorm, decoder.layers, embedding.word_embeddings, output_layer.weight"
        )
    for violations in ranks(lora_behavior.refusal, "TP1", directory, freezing=True, freeze_parameters_ratio=1.0):
        assert violations == [
            ("freeze_parameters_ratio", "nothing is left to train; add trainable_parameters or freeze less")
        ]


def test_a_stage_may_hold_nothing_that_trains(root):
    directory = str(tiny_model.make("llama", root))
    given = {"freezing": True, "freeze_parameters_regex": ".", "trainable_parameters": ("decoder.layers.1.",)}
    first, last = ranks(lora_behavior.gradients, "PP2", directory, **given)
    assert last == {}
    assert all(gradient.abs().max() > 0 for gradient in first.values())
