"""Odd models by fixed seeds: every key that a family's code in transformers reads is varied, and many it ignores.

Written without the families' records: a config.json is a family's usual one with random entries of the tables below put
in, as publishers and tools of several years spell them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ABSENT = object()
"""A key that is taken out of the file."""

Knob = tuple[Mapping[str, Any], ...]
"""Entries of which one is put into a config.json."""


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


def _one(key: str, *values: Any) -> Knob:
    return tuple({key: value} for value in values)


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

_COMMON: Sequence[Knob] = (
    _one("vocab_size", 61, 97, 128, 131),
    (
        {"hidden_size": 32},
        {"hidden_size": 64},
        {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 3},
        {"hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 5},
    ),
    _one("num_hidden_layers", 1, 2, 4),
    _one("num_key_value_heads", 1, 4, None, ABSENT),
    _one("head_dim", 16, 20, 24, None, ABSENT),
    _one("rms_norm_eps", 1e-2, 1e-5, 1e-6, 0.1, ABSENT),
    _one("hidden_act", "silu", "swish", "gelu", "gelu_pytorch_tanh", "relu", "gelu_new", "quick_gelu", ABSENT),
    _one("tie_word_embeddings", True, ABSENT),
    _one("initializer_range", 0.006, 0.1, ABSENT),
    _one("max_position_embeddings", 64, 4096, ABSENT),
    _one("attention_dropout", 0.1, 0.0, 0, None, ABSENT),
    (
        {"torch_dtype": "bfloat16"},
        {"torch_dtype": "float16"},
        {"torch_dtype": None},
        {"torch_dtype": ABSENT, "dtype": "float32"},
        {"torch_dtype": ABSENT, "dtype": "bfloat16"},
        {"torch_dtype": "bfloat16", "dtype": "float32"},
        {"torch_dtype": ABSENT},
    ),
    _one("attention_bias", True, False),
    _one("mlp_bias", True, False),
    _one("use_cache", False, True),
    _one("pad_token_id", None, 0, 5),
    ({"eos_token_id": [2, 7]}, {"eos_token_id": None}, {"bos_token_id": None}),
    _one("pretraining_tp", 2, 1),
    _one("architectures", ["LlamaForCausalLM"], None),
)

_STRAY: Sequence[Knob] = (
    ({"final_logit_softcapping": 30.0}, {"attn_logit_softcapping": 50.0}, {"logits_soft_cap": 20.0}),
    ({"logits_scaling": 8.0}, {"logit_scale": 0.0625}, {"lm_head_multiplier": 0.5}),
    ({"embedding_multiplier": 12.0}, {"scale_emb": 12}, {"embed_scale": 2.0}),
    ({"attention_multiplier": 0.5}, {"query_pre_attn_scalar": 144}, {"attention_scaling": 2.0}),
    ({"residual_multiplier": 0.22}, {"scale_depth": 1.4}, {"dim_model_base": 256}),
    ({"scoring_func": "softmax"}, {"scoring_func": "sigmoid"}, {"moe_router_use_sigmoid": True}),
    ({"topk_method": "noaux_tc"}, {"norm_topk_prob": False}, {"norm_topk_prob": True}),
    ({"use_qk_norm": True}, {"qk_layernorm": True}, {"use_qk_norm": False}),
    (
        {"sliding_window": 9, "use_sliding_window": True},
        {"sliding_window": 9, "use_sliding_window": False},
        {"sliding_window": 9},
        {"attention_chunk_size": 8},
        {"sliding_window_pattern": 2, "sliding_window": 9},
    ),
    (
        {"layer_types": ["sliding_attention", "full_attention", "full_attention"]},
        {"layer_types": ["full_attention"] * 3},
    ),
    ({"num_experts": 6, "num_experts_per_tok": 3}, {"num_local_experts": 6}, {"n_routed_experts": 8}),
    ({"no_rope_layers": [1, 0, 1]}, {"no_rope_layer_interval": 2}, {"nope_layer_interval": 2}),
    ({"rotary_pct": 0.5}, {"rotary_percent": 0.25}, {"partial_rotary_factor": 0.5}),
    ({"layer_norm_eps": 0.1}, {"norm_eps": 0.1}, {"layernorm_epsilon": 0.1}, {"norm_epsilon": 0.1}),
    ({"n_embd": 99}, {"n_head": 3}, {"ffn_hidden_size": 7}, {"d_model": 99}, {"n_layer": 9}),
    ({"hidden_dropout": 0.5}, {"hidden_dropout_prob": 0.5}, {"resid_pdrop": 0.3}, {"embd_pdrop": 0.3}),
    ({"router_jitter_noise": 0.1}, {"input_jitter_noise": 0.1}, {"moe_dropout": 0.1}),
    ({"router_aux_loss_coef": 0.1}, {"output_router_logits": True}, {"aux_loss_alpha": 0.1}, {"seq_aux": True}),
    ({"qkv_bias": False}, {"use_bias": True}, {"attention_out_bias": True}, {"bias": True}, {"o_bias": True}),
    ({"rope_interleave": False}, {"rope_interleaved": True}, {"rope_traditional": True}),
    ({"q_lora_rank": 8}, {"kv_lora_rank": 8}, {"v_head_dim": 6}, {"qk_rope_head_dim": 4}),
    (
        {"is_causal": False},
        {"is_causal": False},
        {"is_decoder": True},
        {"use_bidirectional_attention": True},
        {"is_causal": True},
    ),
    ({"num_nextn_predict_layers": 1}, {"num_mtp_layers": 1}, {"mtp_num_hidden_layers": 1}),
    ({"moe_layer_freq": 2}, {"moe_layer_freq": [0, 1, 1]}, {"moe_every_n_layers": 2}, {"decoder_sparse_step": 2}),
    ({"mlp_only_layers": [0]}, {"first_k_dense_replace": 2}, {"mlp_layer_types": ["dense", "dense", "sparse"]}),
    ({"quantization_config": None}, {"quantization_config": {}}, {"auto_map": {"AutoModel": "m.Model"}}),
    (
        {"per_layer_config": {"0": {"intermediate_size": 40}}},
        {"per_layer_config": {}},
        {"per_layer_config": {"0": {"rms_norm_eps": 0.5}}},
    ),
    ({"text_config": {"vocab_size": 7}}, {"vision_config": {}}, {"rope_theta": None}),
    ({"num_labels": 3}, {"id2label": {"0": "A", "1": "B"}}, {"problem_type": "regression"}),
    ({"hidden_activation": "relu"}, {"activation_function": "gelu"}, {"hidden_act": "mish"}, {"mlp_act": "relu"}),
    ({"original_max_position_embeddings": 32}, {"model_max_length": 16}, {"seq_length": 16}),
    ({"max_window_layers": 1}, {"max_window_layers": 0}, {"max_window_layers": 28}),
    ({"use_parallel_residual": True}, {"parallel_attn": True}, {"normalization": "LayerNorm"}),
    ({"torch_dtype": "bfloat16", "_name_or_path": "x"}, {"use_mrope": True}, {"bos_token_id": 1}),
)

_QWEN_WINDOW: Sequence[Knob] = (
    (
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
        {"use_sliding_window": True, "sliding_window": 1, "max_window_layers": 0},
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 3},
        {"use_sliding_window": True, "sliding_window": None},
        {
            "use_sliding_window": True,
            "sliding_window": 7,
            "layer_types": ["sliding_attention"] + ["full_attention"] * 2,
        },
        {"use_sliding_window": False, "sliding_window": 7, "layer_types": ["sliding_attention"] * 3},
        {"use_sliding_window": True, "layer_types": ["full_attention"] * 3, "sliding_window": 7},
        {"use_sliding_window": True, "sliding_window": 7, "layer_types": ["sliding", "attention", "full_attention"]},
    ),
)
_QWEN_ROUTER: Sequence[Knob] = (
    _one("norm_topk_prob", True, False, ABSENT),
    _one("num_experts_per_tok", 1, 3, 6),
    _one("decoder_sparse_step", 2, 1),
    _one("mlp_only_layers", [0], [1, 2], [], None, [0, 1, 2]),
    _one("moe_intermediate_size", 8, 20),
    _one("router_aux_loss_coef", 0.5),
)
_SIGMOID_ROUTER: Sequence[Knob] = (
    (
        {"n_group": 2, "topk_group": 1},
        {"n_group": 4, "topk_group": 2},
        {"n_group": 4, "topk_group": 3, "num_experts_per_tok": 5},
        {"n_group": 2, "topk_group": 2},
        {"n_group": 8, "topk_group": 4},
        {"n_group": None, "topk_group": None},
        {"n_group": ABSENT, "topk_group": ABSENT},
    ),
    _one("num_experts_per_tok", 1, 3, 4, 8),
    _one("norm_topk_prob", True, False, ABSENT),
    _one("routed_scaling_factor", 1.0, 2.5, 1, 16.0, ABSENT),
    _one("n_shared_experts", 2, 1, 3),
    _one("first_k_dense_replace", 0, 2, 3, 5, ABSENT),
    _one("scoring_func", "sigmoid", "softmax"),
    _one("topk_method", "noaux_tc", "greedy"),
)
_LATENT_SHAPE: Sequence[Knob] = (
    _one("q_lora_rank", None, 12),
    _one("kv_lora_rank", 8, 24),
    ({"qk_rope_head_dim": 4}, {"qk_rope_head_dim": 16, "qk_nope_head_dim": 4}, {"v_head_dim": 20}, {"v_head_dim": 6}),
    _one("attention_bias", True, False),
    _one("num_key_value_heads", 4, None),
    _one("rope_interleave", True, ABSENT, False),
)
_PARTIAL: Knob = _one("partial_rotary_factor", 0.25, 0.75, 1.0, ABSENT, 1)
_DELTA_NET: Sequence[Knob] = (
    _one("partial_rotary_factor", 0.25, 1.0, ABSENT),
    _one("linear_num_value_heads", 2, 6),
    _one("linear_conv_kernel_dim", 2, 3, ABSENT),
    _one("full_attention_interval", 1, 3, ABSENT),
    ({"layer_types": ["linear_attention"] * 3}, {"layer_types": ["full_attention", "linear_attention"] * 2}),
    _one("attention_bias", True, False),
)
_OF_GEMMA4 = (
    _one("layer_types", ["full_attention"] * 3, ["sliding_attention"] * 3, None, ABSENT),
    _one("sliding_window", 1, 5, 64, ABSENT),
    _one("attention_k_eq_v", False, ABSENT),
    _one("num_global_key_value_heads", 2, 4, None, ABSENT),
    _one("global_head_dim", 8, 16),
    _one("final_logit_softcapping", None, 0.5, 30.0, ABSENT),
    _one("attention_bias", True),
    _one("use_bidirectional_attention", None, "vision", ABSENT),
    _one("num_kv_shared_layers", 0, ABSENT),
    (
        {"rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 50.0}}},
        {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
                "full_attention": {"rope_type": "proportional", "rope_theta": 90.0, "partial_rotary_factor": 0.5},
            }
        },
        {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 50},
                "full_attention": {"rope_type": "default", "rope_theta": 90},
            }
        },
    ),
)
OWN: Mapping[str, Sequence[Knob]] = {
    "mistral": (_one("sliding_window", 5, 64, None, ABSENT, 1),),
    "qwen2": _QWEN_WINDOW,
    "qwen3": (*_QWEN_WINDOW, _one("head_dim", 8, 32)),
    "qwen2_moe": (*_QWEN_WINDOW, *_QWEN_ROUTER, _one("shared_expert_intermediate_size", 8), _one("qkv_bias", False)),
    "qwen3_moe": (*_QWEN_WINDOW, *_QWEN_ROUTER),
    "qwen3_next": (*_QWEN_ROUTER, *_DELTA_NET),
    "qwen3_5_text": _DELTA_NET,
    "qwen3_5_moe_text": (*_DELTA_NET, _one("num_experts_per_tok", 1, 3, 6), _one("mtp_num_hidden_layers", 0, 1)),
    "llama4_text": (
        _one("num_experts_per_tok", 1, 2, ABSENT),
        _one("moe_layers", [0], [1, 2], [], None),
        _one("interleave_moe_layer_step", 2, 3, ABSENT),
        _one("use_qk_norm", True, False, ABSENT),
        _one("no_rope_layers", [1, 0, 1], [0, 0, 0], [1, 1, 1], [], None),
        _one("no_rope_layer_interval", 1, 2, ABSENT),
        _one("attention_chunk_size", 4, 8192, None, ABSENT),
        _one("layer_types", ["full_attention"] * 3, ["chunked_attention", "full_attention", "full_attention"]),
        _one("attn_temperature_tuning", True, False, ABSENT),
        _one("floor_scale", 4, 8192, ABSENT),
        _one("attn_scale", 0.5, 0, ABSENT),
    ),
    **dict.fromkeys(("gemma4_text", "gemma4_unified_text"), _OF_GEMMA4),
    "gpt_oss": (
        _one("sliding_window", 5, 1, None, ABSENT),
        _one("layer_types", ["full_attention"] * 3, ["sliding_attention", "full_attention", "full_attention"], None),
        _one("num_experts_per_tok", 1, 3, 6),
        ({"num_local_experts": ABSENT, "num_experts": 4}, {"num_local_experts": 3}, {"num_local_experts": 2}),
        _one("swiglu_alpha", 1.0, 2.5, ABSENT),
        _one("swiglu_limit", 0.1, 5.0, 7, ABSENT),
        ({"rope_scaling": ABSENT}, {"rope_scaling": None}, {"rope_scaling": ABSENT, "rope_parameters": {}}),
        _one("attention_bias", True, False, ABSENT),
    ),
    "mixtral": (
        _one("sliding_window", 5, 64, None),
        _one("num_experts_per_tok", 1, 3, 6),
        _one("router_jitter_noise", 0.2),
        ({"num_local_experts": ABSENT, "num_experts": 4}, {"num_local_experts": 3}),
    ),
    "deepseek_v2": (
        *_LATENT_SHAPE,
        *_SIGMOID_ROUTER,
        ({"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}, {"topk_method": "noaux_tc"}),
        ({"topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1}, {"topk_method": ABSENT}),
    ),
    "deepseek_v3": (*_LATENT_SHAPE, *_SIGMOID_ROUTER),
    "kimi_k2": (*_LATENT_SHAPE, *_SIGMOID_ROUTER),
    "glm": (_PARTIAL,),
    "glm4": (_PARTIAL,),
    "glm4_moe": (_PARTIAL, *_SIGMOID_ROUTER, _one("use_qk_norm", True, False), _one("attention_bias", True, False)),
    "glm4_moe_lite": (
        *_LATENT_SHAPE,
        *_SIGMOID_ROUTER,
        _one("mlp_layer_types", ["sparse", "dense", "sparse"], ["dense"] * 3, ["sparse"] * 3, None),
    ),
    "dots1": (
        *_SIGMOID_ROUTER,
        ({"sliding_window": 7, "max_window_layers": 1}, {"sliding_window": 7, "max_window_layers": 62}),
        (
            {"sliding_window": 7, "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
            {"sliding_window": 7, "max_window_layers": None},
        ),
    ),
    "seed_oss": (
        _one("residual_dropout", 0.1, 0.0, ABSENT),
        _one("attention_out_bias", True, False, ABSENT),
        _one("attention_bias", False, ABSENT),
    ),
    "ernie4_5": (_one("use_bias", True, False, None, ABSENT),),
    "phi3": (
        _PARTIAL,
        _one("sliding_window", 5, 2047, None),
        ({"resid_pdrop": 0.1}, {"embd_pdrop": 0.1}, {"attention_dropout": 0.1}),
        _one("original_max_position_embeddings", 32, 64, 4096),
    ),
    "internlm3": (
        ({"attention_bias": True, "mlp_bias": True}, {"qkv_bias": True, "bias": True}, {"qkv_bias": True}),
        ({"qkv_bias": False, "bias": False}, {"bias": True}),
    ),
    "smollm3": (
        _one("no_rope_layers", [1, 0, 1], [0, 0, 0], [1, 1, 1, 0], None, []),
        _one("no_rope_layer_interval", 2, 1, 3),
        (
            {"use_sliding_window": True, "sliding_window": 5},
            {
                "use_sliding_window": True,
                "sliding_window": 5,
                "layer_types": ["full_attention", "sliding_attention"] * 2,
            },
            {"use_sliding_window": False, "sliding_window": 5, "layer_types": ["sliding_attention"] * 3},
        ),
    ),
}
"""Entries for the keys that only some families read."""

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
    knobs = [*chance.sample(_COMMON, 3), *chance.sample(_STRAY, 3)]
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
