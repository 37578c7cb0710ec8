"""Qwen3.5: the layers of Qwen3-Next, dense or with experts, behind the vision tower of Qwen3-VL or, as transformers
saves the text decoder by itself, without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from megatron_trainjob.families.config import Config
from megatron_trainjob.families.decoder import decoder
from megatron_trainjob.families.family import Family
from megatron_trainjob.families.model import Model
from megatron_trainjob.families.qwen_next import (
    HYBRID_DECODER,
    gated_attention,
    linear_attention,
    refuse_qwen3_next,
    routed_beside_shared,
)
from megatron_trainjob.families.qwen_vl import QWEN3_TOWER, qwen3_tower, rotated_in_sections
from megatron_trainjob.families.vision import NESTED

_SECTIONS = (11, 11, 10)
"""Of a head whose rotary part does not say."""


def _qwen3_5(config: Config, **experts: Any) -> Model:  # noqa: ANN401 - fields of Model
    layers = {**gated_attention(config), **linear_attention(config, separate=True)}
    model = decoder(config, **layers, **experts, prediction_layers=config["num_nextn_predict_layers"])
    if not config.vision_keys:
        return model
    return replace(model, vision=qwen3_tower(config, _SECTIONS), rotary=rotated_in_sections(model.rotary))


def _qwen3_5_moe(config: Config) -> Model:
    every_layer = (True,) * config["num_hidden_layers"]
    experts = routed_beside_shared(config, every_layer, normalized=True)
    return _qwen3_5(config, ffn_hidden_size=config["moe_intermediate_size"], **experts)


_IMAGES: Mapping[str, Any] = {"image_token_id": 248056, "video_token_id": 248057}
_DECODER: Mapping[str, Any] = {**HYBRID_DECODER, "vocab_size": 248320}
_DENSE: Mapping[str, Any] = {
    **_DECODER,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_key_value_heads": 4,
}
_EXPERTS: Mapping[str, Any] = {
    **_DECODER,
    "hidden_size": 2048,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "num_experts": 256,
    "num_experts_per_tok": 8,
}
_ALIASES: Mapping[str, str] = {"mtp_num_hidden_layers": "num_nextn_predict_layers"}
_ALIASES_OF_EXPERTS: Mapping[str, str] = {**_ALIASES, "num_local_experts": "num_experts"}

QWEN3_5 = Family(
    model_type="qwen3_5",
    title="Qwen3.5 (dense)",
    text_type="qwen3_5_text",
    file_names=NESTED,
    keys={**_DENSE, **_IMAGES},
    aliases=_ALIASES,
    vision_keys=QWEN3_TOWER,
    build=_qwen3_5,
    refuse=refuse_qwen3_next,
)

QWEN3_5_MOE = Family(
    model_type="qwen3_5_moe",
    title="Qwen3.5-35B-A3B, Qwen3.5-397B-A17B",
    text_type="qwen3_5_moe_text",
    file_names=NESTED,
    stacks_experts=True,
    keys={**_EXPERTS, **_IMAGES},
    aliases=_ALIASES_OF_EXPERTS,
    vision_keys=QWEN3_TOWER,
    build=_qwen3_5_moe,
    refuse=refuse_qwen3_next,
)

QWEN3_5_TEXT = Family(
    model_type="qwen3_5_text",
    classifier="Qwen3_5TextForSequenceClassification",
    title="Qwen3.5 (text decoder, dense)",
    keys=_DENSE,
    aliases=_ALIASES,
    build=_qwen3_5,
    refuse=refuse_qwen3_next,
)

QWEN3_5_MOE_TEXT = Family(
    model_type="qwen3_5_moe_text",
    title="Qwen3.5 (text decoder, with experts)",
    stacks_experts=True,
    keys=_EXPERTS,
    aliases=_ALIASES_OF_EXPERTS,
    build=_qwen3_5_moe,
    refuse=refuse_qwen3_next,
)
