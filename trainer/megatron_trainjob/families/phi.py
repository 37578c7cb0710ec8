"""Phi-3 and Phi-4: the plain decoder; partial rotary embedding, and per-channel scaling for long contexts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from megatron_trainjob.families.config import Config, Optional
from megatron_trainjob.families.decoder import DECODER, decoder, refuse_windows, rotary, window_everywhere
from megatron_trainjob.families.family import Family, refused
from megatron_trainjob.families.model import Model
from megatron_trainjob.violation import Violation

_OLD_NAMES = ("su", "yarn")


def _phi3(config: Config) -> Model:
    found = rotary(config)
    if found.kind in (*_OLD_NAMES, "longrope"):
        found = replace(found, kind="longrope", original_length=config["original_max_position_embeddings"])
    dropout = float(config["resid_pdrop"])
    return decoder(config, rotary=found, residual_dropout=dropout, **window_everywhere(config))


def _refuse(config: Config) -> Iterator[Violation]:
    yield from refuse_windows(config)
    kind = rotary(config).kind
    if kind not in ("default", "longrope", *_OLD_NAMES):
        yield refused("rope_scaling", kind, "this family scales its rotation by longrope only, or not at all")


PHI3 = Family(
    model_type="phi3",
    classifier="Phi3ForSequenceClassification",
    title="Phi-3, Phi-3.5-mini, Phi-4",
    keys={
        **DECODER,
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "attention_dropout": 0.0,
        "resid_pdrop": 0.0,
        "partial_rotary_factor": 1.0,
        "sliding_window": Optional(),
    },
    build=_phi3,
    refuse=_refuse,
)
