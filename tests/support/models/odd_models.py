"""Odd models by fixed seeds: every key that a family's code in transformers reads is varied, and many it ignores.

A config.json is a family's usual one, which is written down here, with random entries of odd_entries.py put in.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.support.models.odd_entries import ABSENT, COMMON, OWN, STRAY


@dataclass(frozen=True, kw_only=True)
class OddModel:
    """config: the content of config.json. storage: how the weights lie in the folder."""

    seed: int
    config: Mapping[str, Any]
    storage: str

    @property
    def family(self) -> str:
        """Its model_type."""
        return str(self.config["model_type"])


_PLAIN: Mapping[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.51.0",
}
_HEADS = {"head_dim": 12}
_QWEN_EXPERTS = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "decoder_sparse_step": 1,
    "norm_topk_prob": True,
}
_SIGMOID_EXPERTS = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.5,
    "norm_topk_prob": True,
}
_LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 20,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 10,
}
_DELTA_NETS = {
    **_HEADS,
    "partial_rotary_factor": 0.5,
    "full_attention_interval": 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 6,
}
_GEMMA4 = {
    **_HEADS,
    "pad_token_id": 0,
    "global_head_dim": 24,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "sliding_window": 9,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    "final_logit_softcapping": 5.0,
}
_GEMMA4_EXPERTS = {
    "hidden_size_per_layer_input": 0,
    "enable_moe_block": True,
    "num_experts": 6,
    "top_k_experts": 2,
    "moe_intermediate_size": 24,
}
BASES: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "mistral": {**_HEADS, "sliding_window": None},
    "qwen2": {},
    "qwen3": {**_HEADS},
    "qwen2_moe": {**_QWEN_EXPERTS, "shared_expert_intermediate_size": 40},
    "qwen3_moe": {**_QWEN_EXPERTS, **_HEADS},
    "qwen3_next": {**_QWEN_EXPERTS, **_DELTA_NETS, "shared_expert_intermediate_size": 40},
    "qwen3_5_text": {**_DELTA_NETS},
    "qwen3_5_moe_text": {**_QWEN_EXPERTS, **_DELTA_NETS, "shared_expert_intermediate_size": 40},
    "mixtral": {"num_local_experts": 6, "num_experts_per_tok": 2},
    "deepseek_v2": {**_SIGMOID_EXPERTS, **_LATENT, "norm_topk_prob": False, "topk_method": "greedy"},
    "deepseek_v3": {**_SIGMOID_EXPERTS, **_LATENT, "num_nextn_predict_layers": 0},
    "kimi_k2": {**_SIGMOID_EXPERTS, **_LATENT, "num_nextn_predict_layers": 0},
    "glm": {**_HEADS, "pad_token_id": 0, "partial_rotary_factor": 0.5, "attention_bias": True},
    "glm4": {**_HEADS, "pad_token_id": 0, "partial_rotary_factor": 0.5, "attention_bias": True},
    "glm4_moe": {**_SIGMOID_EXPERTS, **_HEADS, "partial_rotary_factor": 0.5, "num_nextn_predict_layers": 0},
    "glm4_moe_lite": {**_SIGMOID_EXPERTS, **_LATENT, "num_nextn_predict_layers": 0},
    "dots1": {**_SIGMOID_EXPERTS, **_HEADS, "sliding_window": None},
    "seed_oss": {**_HEADS},
    "ernie4_5": {**_HEADS},
    "phi3": {"pad_token_id": 0},
    "internlm3": {**_HEADS},
    "smollm3": {"pad_token_id": 0},
    "llama4_text": {
        **_HEADS,
        "pad_token_id": 0,
        "intermediate_size_mlp": 40,
        "num_local_experts": 6,
        "num_experts_per_tok": 1,
        "attention_chunk_size": 4096,
    },
    "gemma4_text": {**_GEMMA4, **_GEMMA4_EXPERTS},
    "gemma4_unified_text": {**_GEMMA4},
    "gpt_oss": {
        **_HEADS,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "sliding_window": 9,
        "swiglu_limit": 0.3,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    },
}
"""What each family's config.json has beyond or instead of the plain one."""

STORAGES = (
    *("one file",) * 6,
    "shards",
    "torch",
    "torch shards",
    "two sources",
    "an index beside the file",
    "left-over frequencies",
    "an output layer beside the tied embedding",
    "only the output layer of the tied embedding",
    "another output layer beside the tied embedding",
    "no output layer",
    "blocks",
    "channels",
    "tensors",
    "prediction layers",
)


UNREAD = {("llama4_text", "channels"), ("llama4_text", "tensors")}
"""Families and storages of which transformers expects other tensors than its own model has: experts one by one."""


def model(family: str, storage: str = "one file", **changes: Any) -> OddModel:
    """The usual model of a family with some entries of its config.json changed."""
    config = {"model_type": family, **_PLAIN, **BASES[family], **changes}
    return OddModel(
        seed=0, config={key: value for key, value in config.items() if value is not ABSENT}, storage=storage
    )


def draw(seed: int) -> OddModel:
    """The model of a seed: its family follows from the seed in turn, so that few seeds meet all."""
    chance = random.Random(seed)
    family = list(BASES)[seed % len(BASES)]
    config = {"model_type": family, **_PLAIN, **BASES[family]}
    knobs = [*chance.sample(COMMON, 3), *chance.sample(STRAY, 3)]
    own = OWN.get(family, ())
    knobs += chance.sample(own, min(len(own), chance.choice((1, 2, 3))))
    for knob in knobs:
        config |= chance.choice(knob)
    if chance.random() < 0.5:
        config |= _rotary(chance, config)
    config = {key: value for key, value in config.items() if value is not ABSENT}
    if chance.random() < 0.9:
        config |= _fitted(config)
    storage = chance.choice(STORAGES)
    if (family, storage) in UNREAD:
        storage = "one file"
    return OddModel(seed=seed, config=config, storage=storage)


def _fitted(config: Mapping[str, Any]) -> dict[str, Any]:
    """The lists with an entry a layer, as long as the model is deep."""
    layers = int(config["num_hidden_layers"])
    lists = {key: config.get(key) for key in ("layer_types", "mlp_layer_types", "no_rope_layers")}
    return {key: (found * layers)[:layers] for key, found in lists.items() if found}


def _rotary(chance: random.Random, config: Mapping[str, Any]) -> dict[str, Any]:
    """A rotary part in one of the spellings of config.json: beside, in rope_scaling, in rope_parameters, or in both."""
    scaling = _scaling(chance, config)
    theta = chance.choice((10000.0, 500000, 1e6, 100.0))
    kind = scaling.pop("rope_type")
    form = chance.choice(("beside", "scaling", "scaling", "parameters", "parameters", "both", "outside"))
    named = {chance.choice(("rope_type", "type")): kind}
    if form == "beside":
        return {"rope_theta": theta}
    if form == "scaling":
        return {"rope_theta": theta, "rope_scaling": {**named, **scaling}}
    if form == "parameters":
        return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **scaling}}
    if form == "both":
        other = {"rope_type": "default", "rope_theta": 77.0}
        return {"rope_scaling": {"rope_type": kind, **scaling}, "rope_parameters": other, "rope_theta": theta}
    return {"rope_theta": theta, "rope_parameters": {"rope_type": kind, **scaling}}


def _scaling(chance: random.Random, config: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of a scaled rotation, with the odd ones that publishers add."""
    kinds = ("default", "linear", "dynamic", "llama3", "yarn", "yarn", "yarn", "longrope")
    if chance.random() < 0.1:
        kinds = ("proportional", "ntk", "mrope", "su")
    elif config["model_type"] == "phi3":
        kinds = ("default", "longrope", "longrope", "su", "yarn", "linear")
    kind = chance.choice(kinds)
    odd = chance.choice(({}, {}, {"partial_rotary_factor": 0.5}, {"mscale_all_dim": 0.707}, {"finetuned": True}))
    found = {"rope_type": kind, **odd}
    factor = chance.choice((2.0, 4, 1.0, 8.0, 0.5))
    if kind in ("linear", "dynamic", "yarn"):
        found["factor"] = factor
    if kind == "llama3":
        found |= {"factor": factor, "low_freq_factor": 1.0, "high_freq_factor": chance.choice((4.0, 2))}
    if kind in ("longrope", "su") or (kind == "yarn" and config["model_type"] == "phi3"):
        found |= _factors_by_channel(chance, config)
    elif kind == "yarn":
        found |= _yarn(chance)
    if kind in ("llama3", "yarn", "longrope") and chance.random() < 0.7:
        found["original_max_position_embeddings"] = chance.choice((32, 64, 128))
    return found


def _yarn(chance: random.Random) -> dict[str, Any]:
    options = (
        {"beta_fast": 16, "beta_slow": 2},
        {"beta_fast": 32.0, "beta_slow": 1.0},
        {"mscale": 0.707},
        {"mscale": 1.0, "mscale_all_dim": 1.0},
        {"mscale": 0.5, "mscale_all_dim": 1.5},
        {"mscale_all_dim": 0},
        {"attention_factor": 1.3},
        {"truncate": False},
        {"attn_factor": 1.2, "extrapolation_factor": 1.0},
        {"attention_factor": None, "beta_fast": None},
    )
    found: dict[str, Any] = {}
    for each in chance.sample(options, 2):
        found |= each
    return found


def _factors_by_channel(chance: random.Random, config: Mapping[str, Any]) -> dict[str, Any]:
    head = config.get("qk_rope_head_dim") or config.get("head_dim")
    head = head if isinstance(head, int) else config["hidden_size"] // config["num_attention_heads"]
    share = config.get("partial_rotary_factor", 1.0)
    number = int(head * (share if isinstance(share, float) else 1.0)) // 2
    found = {
        "short_factor": [round(chance.uniform(1, 2), 3) for _ in range(number)],
        "long_factor": [round(chance.uniform(2, 8), 3) for _ in range(number)],
    }
    return found | chance.choice(({}, {}, {"factor": 4.0}, {"attention_factor": 1.2}, {"short_mscale": 1.1}))
