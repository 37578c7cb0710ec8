"""Every family in every layout against transformers: logits, all gradients, and weights that come out as they went in.

Bounds: float32 sums in another order differ by about 1e-6 of the largest value after four layers; measured differences
are below 6e-6 for logits (of size 1 to 10) and 6e-6 relative for gradients. 1e-4 leaves a wide margin and still finds
every known fault of a layout, which are of 1e-2 and more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import parity
import tiny_model
from gang import gang

BOUND = 1e-4

Layout = dict[str, Any]
_SIZES = {
    "tp": "tensor_model_parallel_size",
    "pp": "pipeline_model_parallel_size",
    "cp": "context_parallel_size",
    "ep": "expert_model_parallel_size",
    "etp": "expert_tensor_parallel_size",
}


def layout(text: str) -> Layout:
    """ "tp2 sp pp2 packed" -> arguments, and the two that are none: packed, virtual."""
    found: Layout = {"packed": False, "virtual": None, "arguments": {}}
    for word in text.split():
        if word == "sp":
            found["arguments"]["sequence_parallel"] = True
        elif word == "packed":
            found["packed"] = True
        elif word.startswith("vpp"):
            found["virtual"] = int(word[3:])
        else:
            name = word.rstrip("0123456789")
            found["arguments"][_SIZES[name]] = int(word[len(name) :])
    return found


def num_ranks(arguments: dict[str, Any]) -> int:
    tensor, pipeline, context = (arguments.get(_SIZES[name], 1) for name in ("tp", "pp", "cp"))
    expert = arguments.get(_SIZES["ep"], 1) * arguments.get(_SIZES["etp"], tensor)
    return pipeline * max(tensor * context, expert)


def check(name: str, text: str, model_root: Path) -> None:
    directory = tiny_model.make(name, model_root)
    chosen = layout(text)
    parity.make_reference(directory, packed=chosen["packed"])
    ranks = gang(num_ranks(chosen["arguments"])).run(
        "parity:compare",
        directory,
        chosen["arguments"],
        packed=chosen["packed"],
        virtual_stages=chosen["virtual"],
    )
    for found in ranks:
        assert found.changed == ()
        assert found.no_gradient == ()
        assert found.logits <= BOUND
        assert found.gradients <= BOUND, found.worst


LLAMA_LAYOUTS = ("tp1", "packed", "tp2", "tp2 sp", "pp2", "cp2", "cp2 packed")


@pytest.mark.dist
@pytest.mark.parametrize("text", LLAMA_LAYOUTS)
def test_llama_equals_transformers_in_every_basic_layout(text: str, model_root: Path):
    check("llama", text, model_root)


@pytest.mark.dist
@pytest.mark.parametrize("name", sorted(tiny_model.MODELS))
def test_every_family_equals_transformers_on_one_rank(name: str, model_root: Path):
    check(name, "tp1", model_root)


EXPERT = tiny_model.EXPERT_MODELS
DENSE = sorted(tiny_model.MODELS.keys() - EXPERT)
DENSE_LAYOUTS = ("packed", "tp2", "tp2 sp", "pp2", "cp2", "cp2 packed", "tp2 pp2")
EXPERT_LAYOUTS = ("packed", "tp2 sp etp1", "pp2", "cp2", "cp2 packed", "ep2", "tp2 sp pp2 etp1")
WIDE_DENSE = ("tp2 sp pp2 packed", "tp2 sp cp2 packed", "pp2 vpp2")
WIDE_EXPERT = (
    "tp2 sp",
    "cp2 ep2",
    "pp2 ep2",
    "tp2 sp ep2 etp1",
    "tp2 sp ep2",
    "tp2 sp pp2 packed",
    "tp2 sp cp2 packed",
    "pp2 vpp2",
)


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("text", DENSE_LAYOUTS + WIDE_DENSE)
@pytest.mark.parametrize("name", DENSE)
def test_dense_families_equal_transformers_in_every_layout(name: str, text: str, model_root: Path):
    check(name, text, model_root)


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("text", EXPERT_LAYOUTS + WIDE_EXPERT)
@pytest.mark.parametrize("name", sorted(EXPERT))
def test_families_of_experts_equal_transformers_in_every_layout(name: str, text: str, model_root: Path):
    check(name, text, model_root)


@pytest.mark.dist
@pytest.mark.parametrize(
    ("name", "text"),
    [("qwen2_odd", "tp2 sp"), ("qwen3_moe", "ep2"), ("deepseek_v3", "tp2 sp etp1"), ("glm4", "tp2 sp packed")],
)
def test_what_is_special_about_a_family_survives_being_split(name: str, text: str, model_root: Path):
    """Padded and tied vocabulary, spread experts, latent attention, norms after the blocks."""
    check(name, text, model_root)


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("text", ["tp4 sp", "tp4 sp packed"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "glm4"])
def test_more_ranks_than_key_value_heads(name: str, text: str, model_root: Path):
    """Four tensor-parallel ranks over two key-value heads: two ranks share each."""
    check(name, text, model_root)


@pytest.mark.dist
def test_uneven_stages_hold_the_layers_they_are_given(model_root: Path):
    directory = tiny_model.make("llama", model_root)
    parity.make_reference(directory, packed=False)
    arguments = {"pipeline_model_parallel_size": 2, "decoder_first_pipeline_num_layers": 1}
    for found in gang(2).run("parity:compare", directory, arguments):
        assert found.logits <= BOUND
        assert found.gradients <= BOUND


FULL = {"recompute_granularity": "full", "recompute_num_layers": 1}
RECOMPUTED = {
    "full uniform": {**FULL, "recompute_method": "uniform"},
    "full block": {**FULL, "recompute_method": "block"},
    **{name: {"recompute_modules": (name,)} for name in ("core_attn", "mlp", "moe", "layernorm", "mla_up_proj")},
    "several": {"recompute_modules": ("core_attn", "mlp", "layernorm")},
}


@pytest.mark.dist
@pytest.mark.parametrize("settings", RECOMPUTED.values(), ids=RECOMPUTED.keys())
def test_recomputed_activations_give_the_same_gradients(settings: dict[str, Any], model_root: Path):
    """DeepSeek-V3 has every module that can be recomputed on this implementation."""
    directory = tiny_model.make("deepseek_v3", model_root)
    parity.make_reference(directory, packed=False)
    arguments = {"recompute_granularity": "selective", **settings}
    (found,) = gang(1).run("parity:compare", directory, arguments)
    assert found.logits <= BOUND
    assert found.gradients <= BOUND, found.worst
    assert found.no_gradient == ()
