"""Llama, InternLM3, Mistral, SmolLM3, Seed-OSS and ERNIE 4.5 (dense): the plain decoder, with biases or windows."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_trainjob.families.config import Config, Optional
from megatron_trainjob.families.decoder import (
    DECODER,
    FULL,
    SLIDING,
    decoder,
    refuse_uneven_heads,
    refuse_windows,
    rotary,
    window_by_layer,
    window_everywhere,
)
from megatron_trainjob.families.family import Family, refused
from megatron_trainjob.families.model import Model
from megatron_trainjob.violation import Violation


def _llama(config: Config) -> Model:
    bias = config["attention_bias"]
    return decoder(config, qkv_bias=bias, output_bias=bias, mlp_bias=config["mlp_bias"])


LLAMA = Family(
    model_type="llama",
    classifier="LlamaForSequenceClassification",
    title="Llama 1 to 3.3, SmolLM2, Yi, DeepSeek-R1-Distill-Llama",
    keys={
        **DECODER,
        "head_dim": Optional(),
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "attention_bias": False,
        "mlp_bias": False,
    },
    build=_llama,
    refuse=refuse_uneven_heads,
)


def _refuse_internlm3(config: Config) -> Iterator[Violation]:
    yield from refuse_uneven_heads(config)
    if config["attention_bias"] != config["mlp_bias"]:
        yield refused("attention_bias", config["attention_bias"], "must be the same as mlp_bias, as in transformers")


INTERNLM3 = Family(
    model_type="internlm3",
    title="InternLM3",
    keys={
        **LLAMA.keys,
        "vocab_size": 128512,
        "intermediate_size": 10240,
        "num_hidden_layers": 48,
        "num_key_value_heads": Optional(2),
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "attention_dropout": 0.0,
        "head_dim": Optional(128),
    },
    aliases={"qkv_bias": "attention_bias", "bias": "mlp_bias"},
    build=_llama,
    refuse=_refuse_internlm3,
)

MISTRAL = Family(
    model_type="mistral",
    classifier="MistralForSequenceClassification",
    title="Mistral 7B, Nemo, Small (text)",
    keys={
        **DECODER,
        "head_dim": Optional(),
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "attention_dropout": 0.0,
        "sliding_window": Optional(4096),
    },
    build=lambda config: decoder(config, **window_everywhere(config)),
    refuse=refuse_windows,
)


def _rotated_layers(config: Config) -> tuple[bool, ...]:
    number, period = config["num_hidden_layers"], config["no_rope_layer_interval"]
    given = config["no_rope_layers"] or [int((layer + 1) % period != 0) for layer in range(number)]
    return tuple(bool(flag) for flag in given[:number])


def _smollm3(config: Config) -> Model:
    bias, rotated, used = config["attention_bias"], _rotated_layers(config), config["use_sliding_window"]
    kinds = [FULL if has_rope else SLIDING for has_rope in rotated]
    return decoder(
        config,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=config["mlp_bias"],
        rotary=rotary(config, layers=rotated),
        **window_by_layer(config, kinds, used=used),
    )


def _refuse_smollm3(config: Config) -> Iterator[Violation]:
    yield from refuse_windows(config, used=config["use_sliding_window"])
    given = config["no_rope_layers"]
    if given is not None and len(given) < config["num_hidden_layers"]:
        message = f"must say 1 or 0 for each of the {config['num_hidden_layers']} layers"
        yield refused("no_rope_layers", given, message)


SMOLLM3 = Family(
    model_type="smollm3",
    classifier="SmolLM3ForSequenceClassification",
    title="SmolLM3",
    keys={
        **DECODER,
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": Optional(4),
        "max_position_embeddings": 32768,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "rope_theta": 2000000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "use_sliding_window": False,
        "sliding_window": Optional(),
        "layer_types": Optional(),
        "no_rope_layers": Optional(),
        "no_rope_layer_interval": 4,
    },
    build=_smollm3,
    refuse=_refuse_smollm3,
)

SEED_OSS = Family(
    model_type="seed_oss",
    classifier="SeedOssForSequenceClassification",
    title="Seed-OSS",
    keys={
        **DECODER,
        "vocab_size": 155136,
        "hidden_size": 4096,
        "intermediate_size": 27648,
        "num_hidden_layers": 64,
        "num_attention_heads": 80,
        "num_key_value_heads": Optional(8),
        "max_position_embeddings": 524288,
        "attention_dropout": 0.1,
        "residual_dropout": 0.1,
        "head_dim": Optional(128),
        "attention_bias": True,
        "attention_out_bias": False,
        "mlp_bias": False,
    },
    build=lambda config: decoder(
        config,
        qkv_bias=config["attention_bias"],
        output_bias=config["attention_out_bias"],
        mlp_bias=config["mlp_bias"],
        residual_dropout=float(config["residual_dropout"]),
    ),
)


def _ernie4_5(config: Config) -> Model:
    bias = bool(config["use_bias"])
    return decoder(config, qkv_bias=bias, output_bias=bias, mlp_bias=bias, rotary=rotary(config, interleaved=True))


ERNIE4_5 = Family(
    model_type="ernie4_5",
    title="ERNIE 4.5 (dense)",
    keys={
        **{key: value for key, value in DECODER.items() if key != "attention_dropout"},
        "vocab_size": 103424,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 18,
        "num_attention_heads": 16,
        "num_key_value_heads": Optional(2),
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "rope_theta": 500000.0,
        "head_dim": Optional(128),
        "use_bias": Optional(False),
    },
    build=_ernie4_5,
)
