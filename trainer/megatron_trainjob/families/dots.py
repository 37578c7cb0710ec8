"""dots.llm1: Qwen3's attention with DeepSeek-V3's experts."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_trainjob.families.config import Config, Optional
from megatron_trainjob.families.decoder import DECODER, FULL, SLIDING, decoder, refuse_windows, window_by_layer
from megatron_trainjob.families.experts import (
    after_dense_layers,
    refuse_groups,
    shared_and_routed,
    sigmoid_router,
)
from megatron_trainjob.families.family import Family, refused
from megatron_trainjob.families.model import Model
from megatron_trainjob.violation import Violation


def _dots1(config: Config) -> Model:
    bias, number, first = config["attention_bias"], config["num_hidden_layers"], config["max_window_layers"]
    has_window = config["sliding_window"] is not None and first is not None
    kinds = [SLIDING if has_window and layer >= first else FULL for layer in range(number)]
    return decoder(
        config,
        qk_norm=True,
        qkv_bias=bias,
        output_bias=bias,
        **shared_and_routed(config, sigmoid_router(config), after_dense_layers(config)),
        **window_by_layer(config, kinds),
    )


def _refuse(config: Config) -> Iterator[Violation]:
    if config["n_shared_experts"] is None:
        yield refused(
            "n_shared_experts", None, "must be a whole number; transformers has no dots1 without shared experts"
        )
    yield from refuse_groups(config)
    yield from refuse_windows(config)


DOTS1 = Family(
    model_type="dots1",
    title="dots.llm1",
    keys={
        **DECODER,
        "vocab_size": 152064,
        "hidden_size": 4608,
        "intermediate_size": 10944,
        "num_hidden_layers": 62,
        "num_attention_heads": 32,
        "num_key_value_heads": Optional(32),
        "max_position_embeddings": 2048,
        "attention_bias": False,
        "sliding_window": Optional(4096),
        "max_window_layers": Optional(62),
        "layer_types": Optional(),
        "moe_intermediate_size": 1408,
        "n_routed_experts": Optional(),
        "n_shared_experts": Optional(),
        "num_experts_per_tok": Optional(),
        "first_k_dense_replace": 0,
        "routed_scaling_factor": 1.0,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": Optional(False),
    },
    aliases={"num_local_experts": "n_routed_experts"},
    build=_dots1,
    refuse=_refuse,
)
