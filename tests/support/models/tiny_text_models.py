"""Settings of the tiny models that read text, one for each family and for what differs within it."""

from __future__ import annotations

from typing import Any

VOCAB_SIZE = 320

DECODER = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
}
_DEEPSEEK = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 48,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
}
SIGMOID = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
    "routed_scaling_factor": 1.5,
    "norm_topk_prob": True,
}
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_DEEPSEEK_YARN = {
    **_YARN,
    "original_max_position_embeddings": 64,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
GPT_OSS = {
    "head_dim": 32,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 7,
    "swiglu_limit": 0.7,
    "rope_parameters": {**_YARN, "original_max_position_embeddings": 32, "truncate": False},
}
SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
}
QWEN3_5_TEXT = {
    **_LINEAR,
    "head_dim": 32,
    "attention_bias": True,
    "partial_rotary_factor": 0.5,
    "rope_parameters": {
        **SECTIONS,
        "partial_rotary_factor": 0.5,
        "mrope_section": [3, 3, 2],
        "mrope_interleaved": True,
    },
}
QWEN3_5_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 40,
}
GEMMA4 = {
    "num_key_value_heads": 4,
    "head_dim": 16,
    "global_head_dim": 32,
    "num_global_key_value_heads": 2,
    "attention_k_eq_v": True,
    "sliding_window": 7,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "final_logit_softcapping": 3.0,
    "tie_word_embeddings": True,
}
GEMMA4_EXPERTS = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 48}
LLAMA4 = {
    "head_dim": 16,
    "intermediate_size": 48,
    "intermediate_size_mlp": 96,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "interleave_moe_layer_step": 2,
    "no_rope_layer_interval": 3,
    "attention_chunk_size": 512,
    "floor_scale": 600,
}

TEXT_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama_tied": ("llama", {"tie_word_embeddings": True}),
    "llama_bias": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama_rope3": ("llama", {"rope_parameters": LLAMA3}),
    "mistral": ("mistral", {"sliding_window": None, "head_dim": 16}),
    "mistral_window": ("mistral", {"sliding_window": 7, "head_dim": 16}),
    "qwen2": ("qwen2", {}),
    "qwen2_odd": ("qwen2", {"vocab_size": VOCAB_SIZE - 3, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3_yarn": (
        "qwen3",
        {"head_dim": 32, "rope_parameters": {**_YARN, "original_max_position_embeddings": 32}},
    ),
    "qwen2_moe": ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 96}),
    "qwen3_moe": ("qwen3_moe", {**EXPERTS, "head_dim": 32}),
    "qwen3_next": (
        "qwen3_next",
        {
            **EXPERTS,
            "head_dim": 32,
            "attention_bias": True,
            "partial_rotary_factor": 0.25,
            "shared_expert_intermediate_size": 96,
            **_LINEAR,
        },
    ),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "deepseek_v2": ("deepseek_v2", {**_DEEPSEEK, "topk_method": "greedy", "norm_topk_prob": False}),
    "deepseek_v2_lite": (
        "deepseek_v2",
        {**_DEEPSEEK, "q_lora_rank": None, "topk_method": "greedy", "norm_topk_prob": False},
    ),
    "deepseek_v3": ("deepseek_v3", {**_DEEPSEEK, "routed_scaling_factor": 2.5, "norm_topk_prob": True}),
    "deepseek_v3_yarn": (
        "deepseek_v3",
        {**_DEEPSEEK, "routed_scaling_factor": 2.5, "norm_topk_prob": True, "rope_parameters": _DEEPSEEK_YARN},
    ),
    "glm4_moe": (
        "glm4_moe",
        {
            **SIGMOID,
            "head_dim": 16,
            "partial_rotary_factor": 0.5,
            "attention_bias": True,
            "use_qk_norm": True,
        },
    ),
    "dots1": ("dots1", {**SIGMOID, "head_dim": 16, "sliding_window": None}),
    "glm": ("glm", {"head_dim": 16, "partial_rotary_factor": 0.5, "attention_bias": True}),
    "seed_oss": (
        "seed_oss",
        {
            "head_dim": 16,
            "attention_out_bias": False,
            "mlp_bias": True,
            "attention_dropout": 0.0,
            "residual_dropout": 0.0,
        },
    ),
    "ernie4_5": ("ernie4_5", {"head_dim": 16, "use_bias": True}),
    "phi3": ("phi3", {"partial_rotary_factor": 0.75, "sliding_window": 23}),
    "internlm3": ("internlm3", {"head_dim": 16, "attention_bias": True, "mlp_bias": True}),
    "smollm3": (
        "smollm3",
        {"no_rope_layer_interval": 3, "use_sliding_window": True, "sliding_window": 7, "tie_word_embeddings": True},
    ),
    "llama4_text": ("llama4_text", LLAMA4),
    "gpt_oss": ("gpt_oss", GPT_OSS),
    "gemma4_text": ("gemma4_text", {**GEMMA4, **GEMMA4_EXPERTS, "hidden_size_per_layer_input": 0}),
    "gemma4_dense": (
        "gemma4_text",
        {
            **GEMMA4,
            "hidden_size_per_layer_input": 0,
            "attention_k_eq_v": False,
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "gemma4_unified_text": ("gemma4_unified_text", {**GEMMA4, "num_global_key_value_heads": 1}),
    "glm4_moe_lite": (
        "glm4_moe_lite",
        {
            **_DEEPSEEK,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.8,
            "mlp_layer_types": ["dense", "sparse", "dense", "sparse"],
        },
    ),
    "kimi_k2": (
        "kimi_k2",
        {
            **_DEEPSEEK,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.827,
            "rope_parameters": {**_DEEPSEEK_YARN, "beta_fast": 1.0, "beta_slow": 1.0},
        },
    ),
    "glm4": ("glm4", {"head_dim": 16, "partial_rotary_factor": 0.5, "attention_bias": True}),
    "qwen3_5_text": ("qwen3_5_text", QWEN3_5_TEXT),
    "qwen3_5_moe_text": ("qwen3_5_moe_text", {**QWEN3_5_TEXT, **QWEN3_5_EXPERTS}),
}
"""Name -> (model_type, settings beyond DECODER)."""
