"""Shared by all families: the plain decoder with rotary positions, and its attention windows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from megatron_trainjob.families.config import Config, Optional
from megatron_trainjob.families.family import refused
from megatron_trainjob.families.model import Model, Rotary
from megatron_trainjob.violation import Violation

DECODER: Mapping[str, Any] = {
    "num_key_value_heads": Optional(),
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "head_dim": None,
}
"""Keys of every family except sizes, with the most common defaults."""

SLIDING, FULL = "sliding_attention", "full_attention"
_INHERITED = ("rope_theta", "partial_rotary_factor", "rope_type", "type")
_MOVED = "original_max_position_embeddings"
_LENGTHENED = ("llama3", "yarn", "longrope")


def decoder(config: Config, **differences: Any) -> Model:  # noqa: ANN401 - fields of Model, of eight types
    """The plain decoder that config.json describes, with the fields in which the family differs from it."""
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    size = head_size(config)
    fields = {
        "family": str(config.raw.get("model_type")),
        "dtype": str(config.raw.get("dtype") or config.raw.get("torch_dtype") or "float32").removeprefix("torch."),
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": config.get("num_key_value_heads") or heads,
        "qk_head_size": size,
        "v_head_size": size,
        "ffn_hidden_size": config.get("intermediate_size") or 0,
        "max_position_embeddings": config["max_position_embeddings"],
        "tied": config["tie_word_embeddings"],
        "activation": config.get("hidden_act") or "silu",
        "norm_epsilon": config["rms_norm_eps"],
        "init_std": config["initializer_range"],
        "attention_dropout": float(config.get("attention_dropout") or 0.0),
        "rotary": rotary(config),
        "expert_layers": (False,) * layers,
    }
    return Model(**{**fields, **differences})


def head_size(config: Config) -> int:
    """Width of one head: the given value, else the hidden size divided by the number of heads."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def rotary(config: Config, *, interleaved: bool = False, layers: tuple[bool, ...] = ()) -> Rotary:
    """The rotary part, from its own object or, in older files, from top-level keys.

    A family whose code ignores partial_rotary_factor rotates whole heads, whatever the file says.
    """
    given = rope_values(config.raw)
    kind = given.get("rope_type", given.get("type", "default"))
    share = 1.0
    if "partial_rotary_factor" in config.keys:
        share = given.get("partial_rotary_factor", config["partial_rotary_factor"])
    longest = config["max_position_embeddings"]
    return Rotary(
        kind=kind,
        base=given.get("rope_theta", config["rope_theta"]),
        share=share,
        interleaved=interleaved,
        original_length=config.raw.get(_MOVED) or given.get(_MOVED) or longest if kind in _LENGTHENED else longest,
        parameters={key: value for key, value in given.items() if key not in _INHERITED},
        layers=layers,
    )


def rope_values(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rotary settings of the file, in one mapping; those inside the object take precedence."""
    inner = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    beside = {key: raw[key] for key in ("rope_theta", "partial_rotary_factor") if raw.get(key) is not None}
    return {**beside, **(inner if isinstance(inner, Mapping) else {})}


def window_everywhere(config: Config) -> dict[str, Any]:
    """A sliding window in every layer, determined by sliding_window alone."""
    window = config["sliding_window"]
    return {"window": window, "window_layers": (True,) * config["num_hidden_layers"]} if window else {}


def window_by_layer(config: Config, default: list[str], *, used: bool = True) -> dict[str, Any]:
    """A sliding window in the layers named in layer_types. default: if it is absent."""
    kinds = config["layer_types"] or default
    window = config["sliding_window"] if used else None
    if not window or SLIDING not in kinds:
        return {}
    return {"window": window, "window_layers": tuple(kind == SLIDING for kind in kinds)}


def refuse_windows(config: Config, *, used: bool = True) -> Iterator[Violation]:
    """Refuses unknown layer types, a wrong number of them, or sliding attention without a window."""
    window = config["sliding_window"] if used else None
    if window is not None and window < 1:
        yield refused("sliding_window", window, "must be at least 1, or null for no window")
    kinds = config.get("layer_types")
    if not kinds:
        return
    if len(kinds) != config["num_hidden_layers"] or not set(kinds) <= {SLIDING, FULL}:
        message = f"must name {SLIDING} or {FULL} for each of the {config['num_hidden_layers']} layers"
        yield refused("layer_types", kinds, message)
    elif SLIDING in kinds and window is None:
        message = f"names layers of {SLIDING}, but there is no window; set sliding_window, or name {FULL}"
        yield refused("layer_types", kinds, message)


def refuse_uneven_heads(config: Config) -> Iterator[Violation]:
    """Refuses a hidden size that heads do not divide, where transformers refuses it even if head_dim is given."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    if config.get("head_dim") is not None and hidden % heads:
        message = f"a hidden size of {hidden} is not divisible by {heads} heads; use a multiple of them"
        yield refused("hidden_size", hidden, message)
