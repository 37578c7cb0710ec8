"""Every family in every layout against transformers: logits, all gradients, and weights that come out as they went in.

Bounds: float32 sums in another order differ by about 1e-6 of the largest value after four layers; measured differences
are below 6e-6 for logits (of size 1 to 10) and 6e-6 relative for gradients. 1e-4 leaves a wide margin and still finds
every known fault of a layout, which are of 1e-2 and more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_trainjob.args.model import check as model_check
from megatron_trainjob.args.tree import TrainArgs
from tests.support.matrix import mostly_slow
from tests.support.models import layouts, tiny_model
from tests.support.ranks import parity
from tests.support.ranks.pool import gloo_ranks

BOUND = 1e-4
LOSS_BOUND = 1e-5


def refused(name: str, layout: dict[str, Any]) -> None:
    """Raises what validation says of the layout."""
    found = model_check.check(tiny_model.raw_config(name), TrainArgs(model="m", **layout))
    raise ValueError("; ".join(map(str, found.violations)))


def check(name: str, text: str, model_root: Path, **settings: Any) -> None:
    chosen = layouts.read(text)
    if layouts.is_refused(name, chosen):
        with pytest.raises(ValueError, match="linear attention (passes|with)|attention sinks|experts with biases"):
            refused(name, chosen["arguments"])
        return
    directory = tiny_model.make(name, model_root, **settings)
    parity.make_reference(directory, packed=chosen["packed"])
    ranks = gloo_ranks(layouts.num_ranks(chosen["arguments"])).run(
        parity.compare,
        directory,
        chosen["arguments"],
        packed=chosen["packed"],
        virtual_stages=chosen["virtual"],
    )
    for found in ranks:
        assert found.changed == ()
        assert found.no_gradient == ()
        assert found.logits <= BOUND
        assert found.loss <= LOSS_BOUND
        assert found.gradients <= BOUND, found.worst
        assert found.replicated == 0.0


@pytest.mark.dist
@pytest.mark.parametrize(
    "text", mostly_slow([text for text in layouts.BASIC if text != "tp1"], ("packed", "tp2 sp", "pp2", "cp2 packed"))
)
def test_llama_equals_transformers_in_every_basic_layout(text: str, model_root: Path):
    check("llama", text, model_root)


DENSE = [(name, text) for name in sorted(tiny_model.MODELS.keys() - tiny_model.EXPERT_MODELS) for text in layouts.DENSE]
EXPERTS = [(name, text) for name in sorted(tiny_model.EXPERT_MODELS) for text in layouts.EXPERTS]
QUICK_DENSE = (("qwen2_odd", "tp2 sp"), ("glm4", "tp2 sp"), ("gemma4_unified_text", "tp2 sp"))
QUICK_EXPERTS = (("qwen3_moe", "ep2"), ("deepseek_v3", "tp2 sp etp1")) + (
    *(("qwen3_next", "tp2 sp etp1"), ("gpt_oss", "tp2 sp etp1"), ("llama4_text", "ep2")),
    *(("qwen3_next", "packed"), ("gpt_oss", "packed"), ("gemma4_text", "tp2 sp ep2")),
)
"""What is special about a family survives being split: padded vocabulary, norms after the blocks, spread experts,
latent attention, states, sinks."""
SEEN_SPLIT = {name for name, text in (*QUICK_DENSE, *QUICK_EXPERTS) if text != "packed"}
QUICK_ALONE = tiny_model.MODELS.keys() - tiny_model.SEEING_MODELS - SEEN_SPLIT


@pytest.mark.dist
@pytest.mark.parametrize("name", mostly_slow(sorted(tiny_model.MODELS), QUICK_ALONE))
def test_every_family_equals_transformers_on_one_rank(name: str, model_root: Path):
    """In `make test` those that are quick in a layout are equal there; those with images in test_images_parity.py."""
    check(name, "tp1", model_root)


@pytest.mark.dist
@pytest.mark.parametrize(("name", "text"), mostly_slow(DENSE, QUICK_DENSE))
def test_dense_families_equal_transformers_in_every_layout(name: str, text: str, model_root: Path):
    check(name, text, model_root)


@pytest.mark.dist
@pytest.mark.parametrize(("name", "text"), mostly_slow(EXPERTS, QUICK_EXPERTS))
def test_families_of_experts_equal_transformers_in_every_layout(name: str, text: str, model_root: Path):
    check(name, text, model_root)


@pytest.mark.dist
@pytest.mark.parametrize("text", mostly_slow(["cp2 packed", "tp2 sp etp1"], ["cp2 packed"]))
def test_what_megatron_core_computes_otherwise_survives_being_split(text: str, model_root: Path):
    """Scaled frequencies and norms of latent attention, and groups of experts ranked by their two best of four."""
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
    settings = {"rope_parameters": {**rope, "mscale_all_dim": 0.7}, "rms_norm_eps": 0.05, "num_experts_per_tok": 4}
    check("deepseek_v3", text, model_root, **settings)


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
    for found in gloo_ranks(2).run(parity.compare, directory, arguments):
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
@pytest.mark.parametrize("name", mostly_slow(RECOMPUTED, ("full uniform", "moe", "mla_up_proj", "several")))
def test_recomputed_activations_give_the_same_gradients(name: str, model_root: Path):
    """DeepSeek-V3 has every module that can be recomputed on this implementation."""
    directory = tiny_model.make("deepseek_v3", model_root)
    parity.make_reference(directory, packed=False)
    arguments = {"recompute_granularity": "selective", **RECOMPUTED[name]}
    (found,) = gloo_ranks(1).run(parity.compare, directory, arguments)
    assert found.logits <= BOUND
    assert found.gradients <= BOUND, found.worst
    assert found.no_gradient == ()
