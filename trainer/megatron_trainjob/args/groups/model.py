"""The shape of the network; unset values come from the model's config.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from megatron_trainjob.args.field import EVERY_TASK, arg


@dataclass(frozen=True, kw_only=True)
class Model:
    """The shape of the network; unset values come from the model's config.json.

    Values that determine the weights' shapes can differ from config.json only in a model that starts from random
    weights (`no_initialization: false`). position_embedding_type, swiglu, disable_bias_linear, add_qkv_bias
    and qk_layernorm follow from the family and must agree with it.
    """

    num_layers: int | None = arg(
        None,
        "Transformer layers.",
        ge=1,
        applies_to=EVERY_TASK,
        hf_config_keys=("num_hidden_layers",),
        status="works",
    )
    hidden_size: int | None = arg(
        None,
        "Width of the hidden states.",
        ge=1,
        applies_to=EVERY_TASK,
        hf_config_keys=("hidden_size",),
        status="works",
    )
    ffn_hidden_size: int | None = arg(
        None,
        "Width of the feed-forward block.",
        ge=1,
        applies_to=EVERY_TASK,
        hf_config_keys=("intermediate_size_mlp", "intermediate_size"),
        status="works",
    )
    num_attention_heads: int | None = arg(
        None,
        "Attention heads.",
        ge=1,
        applies_to=EVERY_TASK,
        hf_config_keys=("num_attention_heads",),
        status="works",
    )
    group_query_attention: bool | None = arg(
        None,
        "Whether several query heads share one key-value head; unset: when num_query_groups > 1.",
        applies_to=EVERY_TASK,
        status="works",
    )
    num_query_groups: int | None = arg(
        None,
        "Key-value heads.",
        ge=1,
        fallback=1,
        applies_to=EVERY_TASK,
        hf_config_keys=("num_key_value_heads",),
        status="works",
    )
    max_position_embeddings: int | None = arg(
        None,
        "Longest sequence that the model supports.",
        unit="tokens",
        ge=1,
        applies_to=EVERY_TASK,
        hf_config_keys=("max_position_embeddings",),
        status="works",
    )
    position_embedding_type: Literal["learned_absolute", "rope", "mrope", "relative", "none"] | None = arg(
        None,
        "Kind of position embedding; it must be the model's: mrope where it reads images, else rope.",
        fallback="rope",
        applies_to=EVERY_TASK,
        status="works",
        refused_choices={
            "learned_absolute": "every supported family has rotary positions; remove it",
            "relative": "no decoder-only model uses it; remove it",
            "none": "every supported family has rotary positions; remove it",
        },
    )
    rotary_base: int | None = arg(
        None,
        "Base (theta) of the rotary frequencies.",
        ge=1,
        fallback=10000,
        applies_to=EVERY_TASK,
        hf_config_keys=("rope_theta",),
        status="works",
    )
    rotary_percent: float | None = arg(
        None,
        "Fraction of each head that is rotated.",
        unit="fraction",
        gt=0,
        le=1,
        fallback=1.0,
        applies_to=EVERY_TASK,
        aliases=("partial_rotary_factor",),
        hf_config_keys=("partial_rotary_factor",),
        status="works",
    )
    normalization: Literal["LayerNorm", "RMSNorm"] | None = arg(
        None,
        "Kind of normalization layer.",
        fallback="RMSNorm",
        applies_to=EVERY_TASK,
        status="works",
        refused_choices={
            "LayerNorm": (
                "every supported family has RMSNorm, and its Hugging Face form, which is read and written, cannot "
                "hold a LayerNorm's bias; remove it"
            )
        },
    )
    norm_epsilon: float | None = arg(
        None,
        "Epsilon of the normalization layers.",
        gt=0,
        fallback=1e-05,
        applies_to=EVERY_TASK,
        hf_config_keys=("rms_norm_eps",),
        status="works",
    )
    swiglu: bool | None = arg(
        None,
        "SwiGLU instead of GELU in the feed-forward block.",
        fallback=True,
        applies_to=EVERY_TASK,
        hf_config_keys=("hidden_act",),
        status="works",
    )
    untie_embeddings_and_output_weights: bool | None = arg(
        None,
        "Separate matrices for input embedding and output.",
        fallback=True,
        applies_to=EVERY_TASK,
        hf_config_keys=("tie_word_embeddings",),
        status="works",
    )
    disable_bias_linear: bool | None = arg(
        None,
        "No bias in the linear layers of the feed-forward block.",
        fallback=True,
        applies_to=EVERY_TASK,
        hf_config_keys=("mlp_bias", "use_bias"),
        status="works",
    )
    add_qkv_bias: bool | None = arg(
        None,
        "Bias in the query-key-value projection only.",
        fallback=True,
        applies_to=EVERY_TASK,
        hf_config_keys=(
            "attention_bias",
            "qkv_bias",
            "use_bias",
        ),
        status="works",
    )
    attention_dropout: float | None = arg(
        None,
        "Dropout on attention probabilities.",
        ge=0,
        lt=1,
        fallback=0.0,
        applies_to=EVERY_TASK,
        hf_config_keys=("attention_dropout",),
        status="works",
    )
    hidden_dropout: float | None = arg(
        None,
        "Dropout on hidden states.",
        ge=0,
        lt=1,
        fallback=0.0,
        applies_to=EVERY_TASK,
        status="works",
    )
    kv_channels: int | None = arg(
        None,
        "Width of one head.",
        ge=1,
        applies_to=EVERY_TASK,
        hf_config_keys=(
            "head_dim",
            "v_head_dim",
        ),
        status="works",
    )
    qk_layernorm: bool | None = arg(
        None,
        "Normalize queries and keys.",
        fallback=False,
        applies_to=EVERY_TASK,
        hf_config_keys=("use_qk_norm",),
        status="works",
    )
    transformer_impl: Literal["local", "transformer_engine"] = arg(
        "transformer_engine",
        'Layers of Megatron-Core itself ("local") or of Transformer Engine; CPU runs always use local.',
        applies_to=EVERY_TASK,
        status="works",
    )
    padded_vocab_size: int | None = arg(
        None,
        "Rows of the embedding matrix.",
        ge=1,
        applies_to=EVERY_TASK,
        hf_config_keys=("vocab_size",),
        status="works",
    )
    rope_scaling: str | Mapping[str, Any] | None = arg(
        None,
        (
            "Scaling of the rotary embedding: a config.json object, or linear, dynamic, yarn together "
            "with max_model_len."
        ),
        applies_to=EVERY_TASK,
        hf_config_keys=("rope_scaling",),
        status="works",
    )
