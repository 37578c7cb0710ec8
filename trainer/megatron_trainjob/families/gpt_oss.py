"""gpt-oss: attention with sinks, every other layer within a window, and experts with biases and a clamped gate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from megatron_trainjob.families.config import Config, Optional
from megatron_trainjob.families.decoder import DECODER, FULL, SLIDING, decoder, refuse_windows, window_by_layer
from megatron_trainjob.families.experts import routed, softmax_router
from megatron_trainjob.families.family import Family, refused
from megatron_trainjob.families.model import ClampedGate, Model
from megatron_trainjob.families.stacks import StackForm
from megatron_trainjob.violation import Violation

_SCALING: Mapping[str, Any] = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def _kinds(config: Config) -> list[str]:
    default = [FULL if layer % 2 else SLIDING for layer in range(config["num_hidden_layers"])]
    return list(config["layer_types"] or default)


def _gpt_oss(config: Config) -> Model:
    bias, layers = config["attention_bias"], config["num_hidden_layers"]
    experts = routed(
        config,
        softmax_router(normalized=True),
        (True,) * layers,
        num_experts="num_local_experts",
        width="intermediate_size",
    )
    return decoder(
        config,
        qkv_bias=bias,
        output_bias=bias,
        sinks=True,
        expert_bias=True,
        clamped_gate=ClampedGate(slope=config["swiglu_alpha"], limit=config["swiglu_limit"]),
        **experts,
        **window_by_layer(config, _kinds(config)),
    )


def _refuse_gpt_oss(config: Config) -> Iterator[Violation]:
    yield from refuse_windows(config)
    if not config["layer_types"] and config["sliding_window"] is None and SLIDING in _kinds(config):
        message = (
            "must be a number of tokens, because every other layer has a window; or name its layers in layer_types"
        )
        yield refused("sliding_window", None, message)


GPT_OSS = Family(
    model_type="gpt_oss",
    classifier="GptOssForSequenceClassification",
    title="gpt-oss-20b, gpt-oss-120b",
    stacks_experts=True,
    stack_form=StackForm(is_exchanged=True, interleaves=True),
    default_scaling=_SCALING,
    has_mxfp4=True,
    keys={
        **{key: value for key, value in DECODER.items() if key != "hidden_act"},
        "vocab_size": 201088,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_hidden_layers": 36,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150000.0,
        "attention_bias": True,
        "sliding_window": Optional(128),
        "layer_types": Optional(),
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
    },
    aliases={"num_experts": "num_local_experts"},
    build=_gpt_oss,
    refuse=_refuse_gpt_oss,
)
