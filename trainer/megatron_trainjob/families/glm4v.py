"""GLM-4.1V and GLM-4.5V: a vision tower of their own before a decoder that is rotated by time, row and column.

The decoder of the first is GLM-4's dense one, that of the second GLM-4.5's mixture of experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from megatron_trainjob.families.config import Config, Optional
from megatron_trainjob.families.decoder import DECODER, decoder, rotary
from megatron_trainjob.families.experts import after_dense_layers, refuse_groups, shared_and_routed, sigmoid_router
from megatron_trainjob.families.family import Family, refused
from megatron_trainjob.families.glm import GLM4_MOE
from megatron_trainjob.families.model import Model
from megatron_trainjob.families.qwen_vl import Shapes, norm, patches, rotated_in_sections, sections, tower
from megatron_trainjob.families.vision import NESTED, Vision
from megatron_trainjob.violation import Violation

_SECTIONS = (8, 12, 12)
"""Of a head whose rotary part does not say."""


def _plain(name: str, inputs: int, outputs: int) -> Shapes:
    """The tensor of a linear without a bias."""
    return {f"{name}.weight": (outputs, inputs)}


def _gated(name: str, size: int, width: int) -> Shapes:
    up = _plain(f"{name}.gate_proj", size, width) | _plain(f"{name}.up_proj", size, width)
    return up | _plain(f"{name}.down_proj", width, size)


def _vision(config: Config) -> Vision:
    vision = config.vision
    size, output, merge = vision["hidden_size"], vision["out_hidden_size"], vision["spatial_merge_size"]
    tensors = {**patches(vision, size), "patch_embed.proj.bias": (size,)}
    tensors["embeddings.position_embedding.weight"] = ((vision["image_size"] // vision["patch_size"]) ** 2, size)
    for name in ("post_conv_layernorm", "post_layernorm"):
        tensors |= norm(name, size, has_bias=False)
    for block in (f"blocks.{number}." for number in range(vision["depth"])):
        for name in ("norm1", "norm2"):
            tensors |= norm(f"{block}{name}", size, has_bias=False)
        tensors |= _plain(f"{block}attn.qkv", size, 3 * size) | _plain(f"{block}attn.proj", size, size)
        tensors |= {f"{block}attn.qkv.bias": (3 * size,)} if vision["attention_bias"] else {}
        tensors |= _gated(f"{block}mlp", size, output)
    tensors |= {"downsample.weight": (output, size, merge, merge), "downsample.bias": (output,)}
    tensors |= _plain("merger.proj", output, output) | norm("merger.post_projection_norm", output)
    tensors |= _gated("merger", output, vision["intermediate_size"])
    own = {"sections": sections(config, _SECTIONS), "video_token": -1, "separates_frames": True}
    return tower(config, width=output, output_size=output, tensors=tensors, **own)


def _glm4v(config: Config) -> Model:
    pairs = rotated_in_sections(rotary(config, interleaved=True))
    return replace(decoder(config, qkv_bias=True, post_norms=True, vision=_vision(config)), rotary=pairs)


def _glm4v_moe(config: Config) -> Model:
    model = decoder(
        config,
        qkv_bias=config["attention_bias"],
        prediction_layers=config["num_nextn_predict_layers"],
        vision=_vision(config),
        **shared_and_routed(config, sigmoid_router(config), after_dense_layers(config)),
    )
    return replace(model, rotary=rotated_in_sections(model.rotary))


def _refuse_glm4v(config: Config) -> Iterator[Violation]:
    vision = config.vision
    if vision["image_size"] < vision["patch_size"]:
        yield refused("vision_config.image_size", vision["image_size"], "must hold a patch; correct it")
    if vision["attention_dropout"]:
        message = "a tower is trained without dropout; set it to 0"
        yield refused("vision_config.attention_dropout", vision["attention_dropout"], message)


def _refuse_glm4v_moe(config: Config) -> Iterator[Violation]:
    yield from _refuse_glm4v(config)
    yield from refuse_groups(config)


_KEYS: Mapping[str, Any] = {
    **{key: value for key, value in DECODER.items() if key != "head_dim"},
    "vocab_size": 151552,
    "hidden_size": 4096,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": Optional(2),
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "partial_rotary_factor": 1.0,
    "image_token_id": 151343,
    "video_token_id": 151344,
}
_TOWER: Mapping[str, Any] = {
    "depth": 24,
    "hidden_size": 1536,
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "num_heads": 12,
    "in_channels": 3,
    "image_size": 336,
    "patch_size": 14,
    "rms_norm_eps": 1e-5,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 4096,
    "intermediate_size": 13696,
    "initializer_range": 0.02,
}

GLM4V = Family(
    model_type="glm4v",
    title="GLM-4.1V-9B, GLM-4.6V-Flash",
    text_type="glm4v_text",
    file_names=NESTED,
    keys=_KEYS,
    vision_keys=_TOWER,
    build=_glm4v,
    refuse=_refuse_glm4v,
)

GLM4V_MOE = Family(
    model_type="glm4v_moe",
    title="GLM-4.5V, GLM-4.6V",
    text_type="glm4v_moe_text",
    file_names=NESTED,
    keys={
        **{key: value for key, value in GLM4_MOE.keys.items() if key not in ("use_qk_norm", "num_mtp_layers")},
        "vocab_size": 151424,
        "max_position_embeddings": 65536,
        "attention_bias": True,
        "num_nextn_predict_layers": 0,
        "image_token_id": 151363,
        "video_token_id": 151364,
    },
    aliases={"num_local_experts": "n_routed_experts"},
    vision_keys=_TOWER,
    build=_glm4v_moe,
    refuse=_refuse_glm4v_moe,
)
