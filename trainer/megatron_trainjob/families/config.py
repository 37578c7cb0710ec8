"""config.json as one family reads it: the keys that its code in transformers reads, with that code's defaults.

Other keys are ignored, as in transformers; a stray sliding_window of a llama has no effect there either.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from megatron_trainjob.violation import Violation

SIZE, WHOLE, NUMBER = "a whole number above 0", "a whole number", "a number"
DECIMAL, POINT = "a number with a decimal point above 0", "a number with a decimal point"
SWITCH, TEXT, WHOLES, TEXTS = "true or false", "a text", "a list of whole numbers", "a list of texts"
SIDES = "a whole number above 0, or two of them"
INTEGER = "a whole number, also below 0"

_TYPES: Mapping[str, str] = {
    **dict.fromkeys(("rms_norm_eps", "initializer_range", "routed_scaling_factor"), DECIMAL),
    "attn_scale": POINT,
    **dict.fromkeys(("hidden_activation", "use_bidirectional_attention"), TEXT),
    **dict.fromkeys(("attention_k_eq_v", "use_double_wide_mlp", "enable_moe_block"), SWITCH),
    "final_logit_softcapping": DECIMAL,
    **dict.fromkeys(("use_clipped_linears", "standardize"), SWITCH),
    **dict.fromkeys(("attn_temperature_tuning",), SWITCH),
    **dict.fromkeys(("moe_layers",), WHOLES),
    **dict.fromkeys(("swiglu_alpha", "swiglu_limit"), DECIMAL),
    **dict.fromkeys(("attention_dropout", "resid_pdrop", "residual_dropout"), NUMBER),
    "router_jitter_noise": POINT,
    **dict.fromkeys(("layer_norm_eps", "downsample_ratio", "pixel_shuffle_ratio"), DECIMAL),
    **dict.fromkeys(("hidden_dropout_prob", "projection_dropout", "projector_dropout"), NUMBER),
    "layer_scale_init_value": POINT,
    **dict.fromkeys(("use_mask_token", "use_mean_pooling", "use_absolute_position_embeddings"), SWITCH),
    **dict.fromkeys(("norm_type", "projector_hidden_act", "vision_feature_select_strategy"), TEXT),
    "vision_feature_layer": INTEGER,
    **dict.fromkeys(("rope_theta", "partial_rotary_factor"), NUMBER),
    **dict.fromkeys(("attention_bias", "attention_out_bias", "mlp_bias", "qkv_bias", "use_bias"), SWITCH),
    **dict.fromkeys(("tie_word_embeddings", "use_sliding_window", "norm_topk_prob", "use_qk_norm"), SWITCH),
    **dict.fromkeys(("rope_interleave",), SWITCH),
    **dict.fromkeys(("hidden_act", "topk_method"), TEXT),
    **dict.fromkeys(("mlp_only_layers", "no_rope_layers"), WHOLES),
    **dict.fromkeys(("fullatt_block_indexes", "deepstack_visual_indexes"), WHOLES),
    **dict.fromkeys(("layer_types", "mlp_layer_types"), TEXTS),
}
"""Keys whose value is not an integer."""

_SIZES = frozenset(
    {
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "kv_lora_rank",
        "q_lora_rank",
        "decoder_sparse_step",
        *("no_rope_layer_interval", "full_attention_interval", "linear_conv_kernel_dim"),
        *("linear_key_head_dim", "linear_value_head_dim", "linear_num_key_heads", "linear_num_value_heads"),
        *("depth", "embed_dim", "num_heads", "in_channels", "patch_size", "temporal_patch_size", "mlp_ratio"),
        *("spatial_merge_size", "out_hidden_size", "window_size", "num_position_embeddings"),
        *("num_channels", "image_seq_length", "image_size", "global_head_dim", "num_global_key_value_heads"),
        *("pooling_kernel_size", "position_embedding_size"),
        *("projector_input_dim", "projector_output_dim", "vision_output_dim"),
    }
)


_MOST: Mapping[str, int] = {
    "num_hidden_layers": 10_000,
    "hidden_size": 2**20,
    "head_dim": 2**20,
    "num_attention_heads": 2**20,
    "num_key_value_heads": 2**20,
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts"), 2**20),
    **dict.fromkeys(("num_mtp_layers", "num_nextn_predict_layers"), 10_000),
}
_VISION = "vision_config"
MOST = 2**31 - 1
"""No size of a model is larger: a config.json with more is damaged and would exhaust memory."""


_SQUARES = ((448, 448), (14, 14))
"""Defaults of keys that have one side of a square, or both."""


@dataclass(frozen=True)
class Optional:
    """The default of a key that may also be null; a null of any other key is refused, as transformers fails with it."""

    default: Any = None


@dataclass(frozen=True, kw_only=True)
class Config:
    """The relevant keys of one config.json. keys: of the family. aliases: another name of a key -> the key.

    If a file has both, the alias takes precedence: transformers applies it last. vision_keys: those of the object
    vision_config, none for a text model. place: of the keys within the file, ending in a dot.
    """

    raw: Mapping[str, Any]
    keys: Mapping[str, Any]
    aliases: Mapping[str, str] = field(default_factory=dict)
    vision_keys: Mapping[str, Any] = field(default_factory=dict)
    place: str = ""

    def __getitem__(self, key: str) -> Any:  # noqa: ANN401 - of any type
        """The value of a key, or its default. Raises KeyError for a key not declared by the family."""
        default = self.keys[key]
        for name in (*(alias for alias, of in self.aliases.items() if of == key), key):
            if name in self.raw:
                return self.raw[name]
        return default.default if isinstance(default, Optional) else default

    def get(self, key: str) -> Any:  # noqa: ANN401 - of any type
        """The same, None for a key that the family does not read."""
        return self[key] if key in self.keys else None

    @property
    def vision(self) -> Config:
        """The object vision_config, empty where the file has none."""
        found = self.raw.get(_VISION)
        inner = found if isinstance(found, Mapping) else {}
        return Config(raw=inner, keys=self.vision_keys, place=f"{_VISION}.")

    def problems(self) -> Iterator[Violation]:
        """Keys whose value has a different type than the family reads."""
        for key, default in self.keys.items():
            for value in self._given(key):
                if value is None and (isinstance(default, Optional) or self._is_absent(key)):
                    continue
                wanted = SIDES if default in _SQUARES else SIZE if key in _SIZES else _TYPES.get(key, WHOLE)
                most = _MOST.get(key, MOST)
                if not _is(wanted, value, most):
                    bound = f" and at most {most}" if _is_whole(value) and value > most else ""
                    message = f"must be {wanted}{bound}; correct it in the model's config.json"
                    yield Violation(path=f"config.json:{self.place}{key}", value=value, message=message)
        if self.vision_keys:
            found = self.raw.get(_VISION, {})
            if not isinstance(found, Mapping):
                message = "must be an object; correct it in the model's config.json"
                yield Violation(path=f"config.json:{_VISION}", value=found, message=message)
            yield from self.vision.problems()

    def _is_absent(self, key: str) -> bool:
        return key not in self.raw and not any(alias in self.raw for alias, of in self.aliases.items() if of == key)

    def _given(self, key: str) -> Iterator[Any]:
        """The effective value, and the key's own if an alias overrides it: transformers checks both types."""
        value = self[key]
        yield value
        if self.raw.get(key, value) is not value:
            yield self.raw[key]


def _is(wanted: str, value: object, most: int = MOST) -> bool:
    if wanted in (SWITCH, TEXT):
        return isinstance(value, bool if wanted == SWITCH else str)
    if wanted == SIDES and isinstance(value, list | tuple):
        return len(value) == 2 and all(_is(SIZE, each, most) for each in value)
    if wanted == INTEGER:
        return _is_whole(value)
    if wanted in (WHOLES, TEXTS):
        entry = WHOLE if wanted == WHOLES else TEXT
        return isinstance(value, list | tuple) and all(_is(entry, each) for each in value)
    if _is_whole(value):
        least = 1 if wanted in (SIZE, SIDES) else 0
        return wanted == NUMBER or (wanted not in (DECIMAL, POINT) and least <= value <= most)
    if not isinstance(value, float) or not math.isfinite(value):
        return False
    return wanted in (NUMBER, POINT) or (wanted == DECIMAL and value > 0)


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
