"""Settings of the tiny models that see images, one for each family and for what differs within it."""

from __future__ import annotations

from typing import Any

from tests.support.models.tiny_text_models import (
    EXPERTS,
    GEMMA4,
    GEMMA4_EXPERTS,
    GPT_OSS,
    LLAMA4,
    QWEN3_5_EXPERTS,
    QWEN3_5_TEXT,
    SECTIONS,
    SIGMOID,
    VOCAB_SIZE,
)

# A model with images has four tokens of its own behind those of the tokenizer.
_IMAGES = {
    "vocab_size": VOCAB_SIZE + 4,
    "image_token_id": VOCAB_SIZE,
    "video_token_id": VOCAB_SIZE + 1,
    "vision_start_token_id": VOCAB_SIZE + 2,
    "vision_end_token_id": VOCAB_SIZE + 3,
}
_TOWER = {
    "depth": 3,
    "num_heads": 2,
    "in_channels": 3,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
_SEEING = {
    **_TOWER,
    "hidden_size": 32,
    "intermediate_size": 48,
    "out_hidden_size": 64,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0, 2],
}
_QWEN3_VL = {
    **_IMAGES,
    "head_dim": 32,
    "rope_parameters": {**SECTIONS, "mrope_section": [6, 5, 5], "mrope_interleaved": True},
    "vision_config": _SEEING,
}
_QWEN3_5 = {
    **_IMAGES,
    **QWEN3_5_TEXT,
    "vision_config": {key: value for key, value in _SEEING.items() if key != "deepstack_visual_indexes"},
}
_TILES = {
    "vocab_size": VOCAB_SIZE + 4,
    "image_token_id": VOCAB_SIZE,
    "vision_config": {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "image_size": [16, 16],
        "patch_size": [4, 4],
        "attention_bias": True,
    },
}
_TILES_NORMED = {
    **_TILES,
    "vision_config": {
        **_TILES["vision_config"],
        "attention_bias": False,
        "use_qk_norm": True,
        "norm_type": "rms_norm",
        "use_mean_pooling": False,
    },
}
_GLM4V = {
    **{key: value for key, value in _IMAGES.items() if "vision" not in key},
    "rope_parameters": {**SECTIONS, "partial_rotary_factor": 0.5, "mrope_section": [1, 2, 1]},
    "vision_config": {
        **_TOWER,
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": 64,
        "image_size": 16,
        "attention_bias": True,
    },
}
_GEMMA4_IMAGES = {
    "vocab_size": VOCAB_SIZE + 4,
    "image_token_id": VOCAB_SIZE,
    "video_token_id": VOCAB_SIZE + 1,
    "boi_token_id": VOCAB_SIZE + 2,
    "eoi_token_id": VOCAB_SIZE + 3,
    "audio_config": None,
    "use_bidirectional_attention": "vision",
    "hidden_size_per_layer_input": 0,
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 12,
        "pooling_kernel_size": 2,
        "patch_size": 4,
        "position_embedding_size": 160,
        "use_clipped_linears": True,
        "standardize": True,
    },
}
_LLAMA4_TOWER = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "image_size": 16,
    "patch_size": 4,
    "projector_input_dim": 40,
    "projector_output_dim": 40,
    "vision_output_dim": 40,
}

IMAGE_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama4": (
        "llama4",
        {
            **LLAMA4,
            "vocab_size": VOCAB_SIZE + 4,
            "image_token_index": VOCAB_SIZE,
            "boi_token_index": VOCAB_SIZE + 2,
            "eoi_token_index": VOCAB_SIZE + 3,
            "vision_config": _LLAMA4_TOWER,
        },
    ),
    "gemma4": ("gemma4", {**GEMMA4, **GEMMA4_EXPERTS, **_GEMMA4_IMAGES}),
    "gemma4_causal": (
        "gemma4",
        {
            **GEMMA4,
            **_GEMMA4_IMAGES,
            "use_bidirectional_attention": None,
            "vision_config": {
                **_GEMMA4_IMAGES["vision_config"],
                "use_clipped_linears": False,
                "standardize": False,
            },
        },
    ),
    "qwen2_vl": (
        "qwen2_vl",
        {
            **_IMAGES,
            "rope_parameters": SECTIONS,
            "vision_config": {**_TOWER, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2},
        },
    ),
    "qwen2_5_vl": (
        "qwen2_5_vl",
        {
            **_IMAGES,
            "rope_parameters": SECTIONS,
            "vision_config": {
                **_TOWER,
                "hidden_size": 32,
                "intermediate_size": 48,
                "out_hidden_size": 64,
                "window_size": 16,
                "fullatt_block_indexes": [1],
            },
        },
    ),
    "qwen3_vl": ("qwen3_vl", _QWEN3_VL),
    "qwen3_vl_moe": (
        "qwen3_vl_moe",
        {**_QWEN3_VL, **EXPERTS, "moe_intermediate_size": 48, "mlp_only_layers": [2]},
    ),
    "glm4v": ("glm4v", _GLM4V),
    "glm4v_moe": (
        "glm4v_moe",
        {
            **_GLM4V,
            **SIGMOID,
            "n_routed_experts": 4,
            "n_group": 1,
            "head_dim": 32,
            "attention_bias": True,
            "rope_parameters": {**_GLM4V["rope_parameters"], "mrope_section": [2, 3, 3]},
        },
    ),
    "internvl": ("internvl", {**_TILES, "tie_word_embeddings": True}),
    "internvl_qwen3": ("internvl_qwen3", {**_TILES_NORMED, "head_dim": 32}),
    "internvl_qwen3_moe": ("internvl_qwen3_moe", {**_TILES, **EXPERTS, "head_dim": 32}),
    "internvl_gpt_oss": ("internvl_gpt_oss", {**_TILES_NORMED, **GPT_OSS}),
    "qwen3_5": ("qwen3_5", _QWEN3_5),
    "qwen3_5_moe": ("qwen3_5_moe", {**_QWEN3_5, **QWEN3_5_EXPERTS}),
}
"""Name -> (model_type, settings beyond DECODER)."""
