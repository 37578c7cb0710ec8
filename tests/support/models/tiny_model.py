"""Tiny random models of every family, as Hugging Face directories with weights, tokenizer and chat template.

Made by transformers itself, so they are what a user would download, only small. 4 layers, hidden size 64.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from megatron_trainjob.families import FAMILIES, read

VOCAB_SIZE = 320

_DECODER = {
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
_EXPERTS = {
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
_SIGMOID = {
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
_LLAMA3 = {
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

_GPT_OSS = {
    "head_dim": 32,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 7,
    "swiglu_limit": 0.7,
    "rope_parameters": {**_YARN, "original_max_position_embeddings": 32, "truncate": False},
}

# A model with images has four tokens of its own behind those of the tokenizer.
_IMAGES = {
    "vocab_size": VOCAB_SIZE + 4,
    "image_token_id": VOCAB_SIZE,
    "video_token_id": VOCAB_SIZE + 1,
    "vision_start_token_id": VOCAB_SIZE + 2,
    "vision_end_token_id": VOCAB_SIZE + 3,
}
_SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
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
    "rope_parameters": {**_SECTIONS, "mrope_section": [6, 5, 5], "mrope_interleaved": True},
    "vision_config": _SEEING,
}

_LINEAR = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
}
_QWEN3_5 = {
    **_QWEN3_VL,
    **_LINEAR,
    "attention_bias": True,
    "partial_rotary_factor": 0.5,
    "rope_parameters": {
        **_SECTIONS,
        "partial_rotary_factor": 0.5,
        "mrope_section": [3, 3, 2],
        "mrope_interleaved": True,
    },
    "vision_config": {key: value for key, value in _SEEING.items() if key != "deepstack_visual_indexes"},
}

_QWEN3_5_TEXT = {key: value for key, value in _QWEN3_5.items() if key not in (*_IMAGES, "vision_config")}
_QWEN3_5_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 40,
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
    "rope_parameters": {**_SECTIONS, "partial_rotary_factor": 0.5, "mrope_section": [1, 2, 1]},
    "vision_config": {
        **_TOWER,
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": 64,
        "image_size": 16,
        "attention_bias": True,
    },
}
_GEMMA4 = {
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
_GEMMA4_EXPERTS = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 48}
_LLAMA4 = {
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

# Name -> (model_type, settings beyond _DECODER).
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama_tied": ("llama", {"tie_word_embeddings": True}),
    "llama_bias": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama_rope3": ("llama", {"rope_parameters": _LLAMA3}),
    "mistral": ("mistral", {"sliding_window": None, "head_dim": 16}),
    "mistral_window": ("mistral", {"sliding_window": 7, "head_dim": 16}),
    "qwen2": ("qwen2", {}),
    "qwen2_odd": ("qwen2", {"vocab_size": VOCAB_SIZE - 3, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3_yarn": (
        "qwen3",
        {"head_dim": 32, "rope_parameters": {**_YARN, "original_max_position_embeddings": 32}},
    ),
    "qwen2_moe": ("qwen2_moe", {**_EXPERTS, "shared_expert_intermediate_size": 96}),
    "qwen3_moe": ("qwen3_moe", {**_EXPERTS, "head_dim": 32}),
    "qwen3_next": (
        "qwen3_next",
        {
            **_EXPERTS,
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
            **_SIGMOID,
            "head_dim": 16,
            "partial_rotary_factor": 0.5,
            "attention_bias": True,
            "use_qk_norm": True,
        },
    ),
    "dots1": ("dots1", {**_SIGMOID, "head_dim": 16, "sliding_window": None}),
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
    "llama4_text": ("llama4_text", _LLAMA4),
    "llama4": (
        "llama4",
        {
            **_LLAMA4,
            "vocab_size": VOCAB_SIZE + 4,
            "image_token_index": VOCAB_SIZE,
            "boi_token_index": VOCAB_SIZE + 2,
            "eoi_token_index": VOCAB_SIZE + 3,
            "vision_config": _LLAMA4_TOWER,
        },
    ),
    "gpt_oss": ("gpt_oss", _GPT_OSS),
    "gemma4_text": ("gemma4_text", {**_GEMMA4, **_GEMMA4_EXPERTS, "hidden_size_per_layer_input": 0}),
    "gemma4_dense": (
        "gemma4_text",
        {
            **_GEMMA4,
            "hidden_size_per_layer_input": 0,
            "attention_k_eq_v": False,
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "gemma4": ("gemma4", {**_GEMMA4, **_GEMMA4_EXPERTS, **_GEMMA4_IMAGES}),
    "gemma4_causal": (
        "gemma4",
        {
            **_GEMMA4,
            **_GEMMA4_IMAGES,
            "use_bidirectional_attention": None,
            "vision_config": {
                **_GEMMA4_IMAGES["vision_config"],
                "use_clipped_linears": False,
                "standardize": False,
            },
        },
    ),
    "gemma4_unified_text": ("gemma4_unified_text", {**_GEMMA4, "num_global_key_value_heads": 1}),
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
    "qwen2_vl": (
        "qwen2_vl",
        {
            **_IMAGES,
            "rope_parameters": _SECTIONS,
            "vision_config": {**_TOWER, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2},
        },
    ),
    "qwen2_5_vl": (
        "qwen2_5_vl",
        {
            **_IMAGES,
            "rope_parameters": _SECTIONS,
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
        {**_QWEN3_VL, **_EXPERTS, "moe_intermediate_size": 48, "mlp_only_layers": [2]},
    ),
    "glm4v": ("glm4v", _GLM4V),
    "glm4v_moe": (
        "glm4v_moe",
        {
            **_GLM4V,
            **_SIGMOID,
            "n_routed_experts": 4,
            "n_group": 1,
            "head_dim": 32,
            "attention_bias": True,
            "rope_parameters": {**_GLM4V["rope_parameters"], "mrope_section": [2, 3, 3]},
        },
    ),
    "internvl": ("internvl", {**_TILES, "tie_word_embeddings": True}),
    "internvl_qwen3": ("internvl_qwen3", {**_TILES_NORMED, "head_dim": 32}),
    "internvl_qwen3_moe": ("internvl_qwen3_moe", {**_TILES, **_EXPERTS, "head_dim": 32}),
    "internvl_gpt_oss": ("internvl_gpt_oss", {**_TILES_NORMED, **_GPT_OSS}),
    "qwen3_5_text": ("qwen3_5_text", _QWEN3_5_TEXT),
    "qwen3_5_moe_text": ("qwen3_5_moe_text", {**_QWEN3_5_TEXT, **_QWEN3_5_EXPERTS}),
    "qwen3_5": ("qwen3_5", _QWEN3_5),
    "qwen3_5_moe": ("qwen3_5_moe", {**_QWEN3_5, **_QWEN3_5_EXPERTS}),
}
EXPERT_MODELS = frozenset(
    name for name, (kind, own) in MODELS.items() if read({**_DECODER, **own, "model_type": kind}).num_experts
)

LINEAR_MODELS = frozenset(name for name, (kind, _) in MODELS.items() if "linear_num_key_heads" in FAMILIES[kind].keys)
"""Those that context-parallel ranks cannot share."""

SINK_MODELS = frozenset(name for name, (kind, _) in MODELS.items() if read({"model_type": kind}).sinks)
"""Those with sinks in attention and biases in experts."""

SEEING_MODELS = frozenset(name for name, (kind, _) in MODELS.items() if FAMILIES[kind].text_type)
"""Those with a vision tower."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML. Marks the assistant's tokens, as templates that say what is trained do."""

_SPECIAL_TOKENS = ["<pad>", "<s>", "<|im_end|>", "<|im_start|>"]
_TEXT = (
    "the quick brown fox jumps over the lazy dog",
    "a function returns the sum of its arguments, or raises an error when one of them is no number",
    "what is the capital of France? the capital of France is Paris",
    "list the files of a directory and print the size of each in bytes",
    "you are a helpful assistant who answers in one short sentence",
)


def make(name: str, root: Path, *, dtype: str = "float32", seed: int = 1, **settings: Any) -> Path:
    """The model's directory under `root`, written if it is not there yet. Settings change its config.json."""
    changes = "".join(f"-{key}-{value}" for key, value in sorted(settings.items()))
    if len(changes) > 60:
        changes = "-" + hashlib.sha256(changes.encode()).hexdigest()[:12]
    directory = root / f"{name}-{dtype}-{seed}{changes}"
    if not (directory / "config.json").exists():
        _write(name, directory, dtype=dtype, seed=seed, settings=settings)
    return directory


def config_of(name: str, **settings: Any) -> Any:
    """The transformers configuration of a tiny model."""
    from transformers import AutoConfig

    kind, own = MODELS[name]
    return AutoConfig.for_model(FAMILIES[kind].transformers_type or kind, **_settings_of(name, **settings))


def _settings_of(name: str, **settings: Any) -> dict[str, Any]:
    """The arguments of the transformers configuration of a tiny model."""
    kind, own = MODELS[name]
    flat = {**_DECODER, **own, **settings}
    return FAMILIES[kind].nested(flat) if FAMILIES[kind].text_type else flat


def auto_class(kind: str) -> Any:
    """The auto class of transformers that makes models of this model_type."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.modeling_outputs import MoeCausalLMOutputWithPast

    if kind == "llama4":  # transformers 5.24 reads this field of its text model's outputs, which have none
        MoeCausalLMOutputWithPast.image_outputs = None
    return AutoModelForImageTextToText if FAMILIES[kind].text_type else AutoModelForCausalLM


def raw_config(name: str) -> dict[str, Any]:
    """What its config.json says, without transformers."""
    kind, own = MODELS[name]
    return {**_DECODER, **own, "model_type": kind}


def is_known_to_transformers(name: str) -> bool:
    """Whether the installed version has this family's code."""
    from transformers import CONFIG_MAPPING

    kind, _ = MODELS[name]
    return (FAMILIES[kind].transformers_type or kind) in CONFIG_MAPPING


def _write(name: str, directory: Path, *, dtype: str, seed: int, settings: dict[str, Any]) -> None:
    import torch

    config = config_of(name, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto_class(MODELS[name][0]).from_config(config, dtype=torch.float32)
        _randomise(model, norm=0.0 if read(raw_config(name)).zero_centered_norms else 1.0)
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    _rename_family(directory, MODELS[name][0])
    tokenizer().save_pretrained(directory)
    (directory / "generation_config.json").write_text(json.dumps({"do_sample": False, "eos_token_id": 2}))


def transformers_config(directory: Path) -> Any:
    """The configuration of a directory whose model_type transformers may have under another name."""
    from transformers import AutoConfig

    raw = json.loads((directory / "config.json").read_text())
    kind = raw.pop("model_type")
    return AutoConfig.for_model(FAMILIES[kind].transformers_type or kind, **raw)


def _rename_family(directory: Path, kind: str) -> None:
    """The model_type under which the model is published, where transformers has its code under another."""
    path = directory / "config.json"
    stored = FAMILIES[kind].stored_type or kind
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": stored}, indent=2))


def _randomise(model: Any, *, norm: float) -> None:
    """Weights that make every part matter: norms away from one, biases away from zero, experts apart.

    norm: the weight of a norm that changes no size.
    """
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.1 if parameter.ndim > 1 else 0.3
            centre = (1.0 if "linear_attn" in name else norm) if "norm" in name and parameter.ndim == 1 else 0.0
            parameter.copy_(torch.randn_like(parameter) * spread + centre)
            if "encoder.layers." in name and name.endswith(("q_norm.weight", "k_norm.weight")):
                parameter.mul_(0.5)  # scores of Gemma-4's tower have no other scale
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(torch.randn_like(buffer) * 0.05)
            elif name.endswith(("layer_scalar", "std_scale")):
                buffer.copy_(torch.rand_like(buffer) + 0.5)
            elif name.endswith("std_bias"):
                buffer.copy_(torch.randn_like(buffer))
            elif name.endswith(("_min", "_max")):  # bounds of a linear, near enough to be reached
                buffer.copy_((torch.rand_like(buffer) + 0.5) * (1 if name.endswith("_max") else -1))


@cache
def tokenizer() -> Any:
    """A byte-level BPE of at most VOCAB_SIZE - 5 tokens, so that it fits every model here."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 5,
        special_tokens=_SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="<|im_end|>"
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped
