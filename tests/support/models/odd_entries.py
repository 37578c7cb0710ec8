"""Entries that odd_models.py puts into a config.json: of keys that every family reads, one reads, or none does.

Written without the families' records, as publishers and tools of several years spell them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ABSENT = object()
"""A key that is taken out of the file."""

Knob = tuple[Mapping[str, Any], ...]
"""Entries of which one is put into a config.json."""


def _one(key: str, *values: Any) -> Knob:
    return tuple({key: value} for value in values)


COMMON: Sequence[Knob] = (
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

STRAY: Sequence[Knob] = (
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
