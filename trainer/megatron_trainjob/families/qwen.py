"""Qwen2, Qwen3 and their mixtures of experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from megatron_trainjob.families.config import Config, Optional
from megatron_trainjob.families.decoder import (
    DECODER,
    FULL,
    SLIDING,
    decoder,
    refuse_windows,
    window_by_layer,
    window_everywhere,
)
from megatron_trainjob.families.experts import every_nth_layer, routed, softmax_router
from megatron_trainjob.families.family import Family, refused
from megatron_trainjob.families.model import Model
from megatron_trainjob.violation import Violation


def dense_window(config: Config) -> dict[str, Any]:
    """The window of a dense model. If used, the window applies to the layers from max_window_layers on."""
    used, first = config["use_sliding_window"], config["max_window_layers"]
    has_window = used and config["sliding_window"] is not None
    kinds = [SLIDING if has_window and layer >= first else FULL for layer in range(config["num_hidden_layers"])]
    return window_by_layer(config, kinds, used=used)


def _window_of_mixture(config: Config) -> dict[str, Any]:
    """In Qwen2's mixtures it applies to every other layer up to max_window_layers."""
    return window_by_layer(config, _kinds_in_mixture(config), used=config["use_sliding_window"])


def _kinds_in_mixture(config: Config) -> list[str]:
    used, last = config["use_sliding_window"], config["max_window_layers"]
    layers = range(config["num_hidden_layers"])
    return [SLIDING if used and layer % 2 == 0 and layer < last else FULL for layer in layers]


def refuse_dense_windows(config: Config) -> Iterator[Violation]:
    """Refuses windows that contradict the layers, where windows are used."""
    return refuse_windows(config, used=config["use_sliding_window"])


def _refuse_windows_of_mixture(config: Config) -> Iterator[Violation]:
    """Refuses also windows of unknown size, which a dense model takes for none and a mixture does not."""
    yield from refuse_dense_windows(config)
    if not config["layer_types"] and config["sliding_window"] is None and SLIDING in _kinds_in_mixture(config):
        message = "must be a number of tokens, because use_sliding_window is true; set that to false for no window"
        yield refused("sliding_window", None, message)


def _qwen3(config: Config) -> Model:
    bias = config["attention_bias"]
    return decoder(config, qk_norm=True, qkv_bias=bias, output_bias=bias, **dense_window(config))


def _experts(config: Config) -> dict[str, Any]:
    router = softmax_router(normalized=config["norm_topk_prob"])
    return routed(config, router, every_nth_layer(config), num_experts="num_experts", width="moe_intermediate_size")


def _qwen2_moe(config: Config) -> Model:
    shared = {"shared_expert_width": config["shared_expert_intermediate_size"], "shared_expert_gate": True}
    experts = _experts(config)
    return decoder(
        config,
        qkv_bias=config["qkv_bias"],
        **experts,
        **(shared if experts else {}),
        **_window_of_mixture(config),
    )


def _qwen3_moe(config: Config) -> Model:
    bias = config["attention_bias"]
    window = window_everywhere(config) if config["use_sliding_window"] else {}
    return decoder(config, qk_norm=True, qkv_bias=bias, output_bias=bias, **_experts(config), **window)


_SIZES: Mapping[str, Any] = {
    **DECODER,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "attention_dropout": 0.0,
    "use_sliding_window": False,
    "sliding_window": Optional(4096),
}
_DENSE: Mapping[str, Any] = {
    **_SIZES,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": Optional(32),
    "max_window_layers": 28,
    "layer_types": Optional(),
}
_MIXTURE: Mapping[str, Any] = {
    **_SIZES,
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "decoder_sparse_step": 1,
    "mlp_only_layers": Optional(),
    "norm_topk_prob": False,
}

QWEN2 = Family(
    model_type="qwen2",
    classifier="Qwen2ForSequenceClassification",
    title="Qwen2, Qwen2.5, QwQ, DeepSeek-R1-Distill-Qwen",
    keys=_DENSE,
    build=lambda config: decoder(config, qkv_bias=True, **dense_window(config)),
    refuse=refuse_dense_windows,
)

QWEN3 = Family(
    model_type="qwen3",
    classifier="Qwen3ForSequenceClassification",
    title="Qwen3 (dense)",
    keys={**_DENSE, "head_dim": 128, "attention_bias": False},
    build=_qwen3,
    refuse=refuse_dense_windows,
)

QWEN2_MOE = Family(
    model_type="qwen2_moe",
    classifier="Qwen2MoeForSequenceClassification",
    title="Qwen1.5-MoE, Qwen2-57B-A14B",
    keys={
        **_MIXTURE,
        "intermediate_size": 5632,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "max_window_layers": 28,
        "layer_types": Optional(),
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "qkv_bias": True,
    },
    build=_qwen2_moe,
    refuse=_refuse_windows_of_mixture,
)

QWEN3_MOE = Family(
    model_type="qwen3_moe",
    classifier="Qwen3MoeForSequenceClassification",
    title="Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder",
    keys={
        **_MIXTURE,
        "intermediate_size": 6144,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "attention_bias": False,
    },
    aliases={"num_local_experts": "num_experts"},
    build=_qwen3_moe,
    refuse=refuse_dense_windows,
)
