"""Odd model folders by fixed seeds: logits are transformers' own, or validation refuses the model as training does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.support.models.odd_models import BASES, model
from tests.support.ranks import odd_logits
from tests.support.ranks.pool import gloo_ranks

ONLY_READ_WHEN_LOADED = ("another than model.embed_tokens.weight",)
"""What `mtj validate` would have to read whole tensors for."""

ONLY_OURS = {
    ("phi3", "issues during automatic conversion of the weights"),  # fused layers in blocks of 8 bits
    ("mixtral", "unsupported operand type(s) for *: 'NoneType' and 'float'"),  # scaled rotation without head_dim
}
"""Families and errors of transformers with what we compute: its own FP8, and a size that its configuration omits."""

LONGROPE = {"type": "longrope", "short_factor": [1.5] * 4, "long_factor": [4.0] * 4}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
EQUAL = {
    "one normalized expert": model("mixtral", num_experts_per_tok=1),
    "one normalized expert of qwen": model("qwen3_moe", num_experts_per_tok=1),
    "another name of experts wins": model("qwen3_moe", num_local_experts=4, num_experts=6),
    "another name of the rotated width wins": model("glm4_moe_lite", head_dim=4, qk_rope_head_dim=8),
    "yarn without a width of heads": model("qwen2", head_dim=16, rope_scaling=YARN),
    "only the output layer of a tied pair": model(
        "llama", "only the output layer of the tied embedding", tie_word_embeddings=True
    ),
    "a copied output layer": model("qwen3", "an output layer beside the tied embedding", tie_word_embeddings=True),
}
REFUSED = {
    "attention in both directions": (model("seed_oss", is_causal=False), "lets every token attend to later ones"),
    "layers of their own": (
        model("llama", per_layer_config={"0": {"rms_norm_eps": 0.5}}),
        "per-layer configurations",
    ),
    "factors of another length": (model("qwen2", rope_scaling=LONGROPE), "must be a list of 6 numbers"),
    "latent longrope without a factor": (
        model("deepseek_v3", max_position_embeddings=64, rope_scaling={**LONGROPE, "mscale_all_dim": 1.0}),
        "scales the scores by the factor of the rotation, which is missing",
    ),
    "groups of one expert": (model("dots1", n_group=8, topk_group=4), "groups of 1 experts are too small"),
    "another width of latent heads": (
        model("kimi_k2", head_dim=20),
        "the rotated part of each head is qk_rope_head_dim",
    ),
    "no list of rotated layers": (model("smollm3", no_rope_layers=[]), "must say 1 or 0 for each of the 3 layers"),
    "an empty quantization": (model("glm4", quantization_config={}), "weights quantized by None are not supported"),
    "windows of no size in a mixture": (
        model("qwen2_moe", use_sliding_window=True, sliding_window=None),
        "must be a number of tokens, because use_sliding_window is true",
    ),
    "a null number of heads": (model("qwen2_moe", num_key_value_heads=None), "must be a whole number above 0"),
    "a null width of heads": (model("qwen3_moe", head_dim=None), "must be a whole number above 0"),
    "an odd width of heads": (model("qwen3", head_dim=11), "need an even number of channels per head, not 11"),
    "no base of the rotation": (model("llama", rope_theta=None), "must be a number"),
    "another output layer": (
        model("llama", "another output layer beside the tied embedding", tie_word_embeddings=True),
        "lm_head.weight is another than model.embed_tokens.weight",
    ),
}


@pytest.mark.dist
def test_oddities_that_transformers_computes_are_computed_alike(tmp_path: Path):
    (verdicts,) = gloo_ranks(1).run(odd_logits.judge_each, EQUAL, tmp_path)
    assert {name: str(verdict) for name, verdict in verdicts.items() if verdict.outcome != "equal"} == {}


@pytest.mark.dist
def test_oddities_that_cannot_be_trained_are_refused_by_name(tmp_path: Path):
    models = {name: odd for name, (odd, _) in REFUSED.items()}
    (verdicts,) = gloo_ranks(1).run(odd_logits.judge_each, models, tmp_path)
    for name, (_, message) in REFUSED.items():
        assert verdicts[name].outcome in ("refused", "unmade"), str(verdicts[name])
        assert message in verdicts[name].detail, str(verdicts[name])


@pytest.mark.dist
@pytest.mark.parametrize(
    "seeds",
    [
        pytest.param(range(0, len(BASES), 4), id="one of every fourth family"),
        pytest.param(range(len(BASES)), id="one of each family", marks=pytest.mark.slow),
        pytest.param(range(1000, 1000 + 8 * len(BASES)), id="eight of each family", marks=pytest.mark.slow),
    ],
)
def test_odd_models_are_computed_as_transformers_does_or_refused(seeds: range, tmp_path: Path):
    (verdicts,) = gloo_ranks(1).run(odd_logits.judge_all, seeds, tmp_path)
    bad = [str(verdict) for verdict in verdicts if verdict.outcome in ("wrong", "crashed")]
    late = [str(verdict) for verdict in verdicts if verdict.outcome == "refused late"]
    alone = [verdict for verdict in verdicts if verdict.outcome == "ours alone"]
    assert bad == []
    assert [str(verdict) for verdict in alone if not _is_only_ours(verdict)] == []
    assert [text for text in late if not any(known in text for known in ONLY_READ_WHEN_LOADED)] == []
    assert Counter(verdict.outcome for verdict in verdicts)["equal"] >= len(seeds) // 3


def _is_only_ours(verdict: odd_logits.Verdict) -> bool:
    return any(verdict.odd.family == family and error in verdict.detail for family, error in ONLY_OURS)
