"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL: a vision tower before a decoder with rotary positions in time, row and column.

Qwen3-VL also adds states of some layers of its tower to the outputs of the decoder's first layers; it exists as a dense
decoder and as a mixture of experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from megatron_trainjob.families.config import Config, Optional
from megatron_trainjob.families.decoder import DECODER, decoder, rope_values
from megatron_trainjob.families.experts import every_nth_layer, routed, softmax_router
from megatron_trainjob.families.family import Family
from megatron_trainjob.families.model import Model, Rotary
from megatron_trainjob.families.qwen import dense_window, refuse_dense_windows
from megatron_trainjob.families.vision import NESTED, Vision

Shapes = dict[str, tuple[int, ...]]

_TOKENS: Mapping[str, Any] = {"image_token_id": 151655, "video_token_id": 151656}
_QWEN2: Mapping[str, Any] = {
    **{key: value for key, value in DECODER.items() if key != "head_dim"},
    **_TOKENS,
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": Optional(8),
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "use_sliding_window": Optional(False),
    "sliding_window": Optional(4096),
    "max_window_layers": 80,
    "layer_types": Optional(),
}
_PATCHES: Mapping[str, Any] = {
    "depth": 32,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
_SECTIONS = (16, 24, 24)
"""Of a head whose rotary part does not say."""


def linear(name: str, inputs: int, outputs: int) -> Shapes:
    """The tensors of a linear with a bias."""
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str, size: int, *, has_bias: bool = True) -> Shapes:
    """The tensors of a norm."""
    return {f"{name}.weight": (size,), **({f"{name}.bias": (size,)} if has_bias else {})}


def patches(config: Config, size: int) -> Shapes:
    """The kernel that turns a patch into a state of the tower."""
    step, side = config["temporal_patch_size"], config["patch_size"]
    return {"patch_embed.proj.weight": (size, config["in_channels"], step, side, side)}


def attention(block: str, size: int) -> Shapes:
    """The attention of one layer of the tower."""
    return {**linear(f"{block}attn.qkv", size, 3 * size), **linear(f"{block}attn.proj", size, size)}


def rotated_in_sections(plain: Rotary) -> Rotary:
    """The rotary part; files call it mrope where transformers sees a default one with sections."""
    return replace(plain, kind="default") if plain.kind == "mrope" else plain


def sections(config: Config, default: tuple[int, ...]) -> tuple[int, ...]:
    """Channel pairs by time, row and column; () for anything but a list of three counts."""
    given = rope_values(config.raw).get("mrope_section", default)
    fits = isinstance(given, list | tuple) and len(given) == 3 and all(type(each) is int for each in given)
    return tuple(given) if fits else ()


def tower(config: Config, **own: Any) -> Vision:  # noqa: ANN401 - fields of Vision
    """The tower of vision_config, with the fields in which families differ."""
    vision = config.vision
    fields = {
        "depth": vision["depth"],
        "hidden_size": vision["hidden_size"],
        "num_heads": vision["num_heads"],
        "channels": vision["in_channels"],
        "patch_size": vision["patch_size"],
        "temporal_patch_size": vision["temporal_patch_size"],
        "merge_size": vision["spatial_merge_size"],
        "image_token": config["image_token_id"],
        "video_token": config.get("video_token_id"),
        "sections": sections(config, _SECTIONS),
    }
    return Vision(**{**fields, **own})


def _with_tower(config: Config, vision: Vision) -> Model:
    model = decoder(config, qkv_bias=True, **dense_window(config), vision=vision)
    return replace(model, rotary=rotated_in_sections(model.rotary))


def qwen3_tower(config: Config, default: tuple[int, ...] = (24, 20, 20)) -> Vision:
    """The tower of Qwen3-VL and its successors. default: sections of a head whose rotary part does not say."""
    vision = config.vision
    size, width, output = vision["hidden_size"], vision["intermediate_size"], vision["out_hidden_size"]
    deep = tuple(vision.get("deepstack_visual_indexes") or ())
    tensors = {**patches(vision, size), "patch_embed.proj.bias": (size,)}
    tensors["pos_embed.weight"] = (vision["num_position_embeddings"], size)
    for block in (f"blocks.{number}." for number in range(vision["depth"])):
        tensors |= {**norm(f"{block}norm1", size), **norm(f"{block}norm2", size), **attention(block, size)}
        tensors |= {**linear(f"{block}mlp.linear_fc1", size, width), **linear(f"{block}mlp.linear_fc2", width, size)}
    merged = size * vision["spatial_merge_size"] ** 2
    mergers = {"merger": size, **{f"deepstack_merger_list.{number}": merged for number in range(len(deep))}}
    for name, normed in mergers.items():
        tensors |= norm(f"{name}.norm", normed)
        tensors |= {**linear(f"{name}.linear_fc1", merged, merged), **linear(f"{name}.linear_fc2", merged, output)}
    return tower(
        config,
        width=width,
        output_size=output,
        sections=sections(config, default),
        interleaves_sections=True,
        separates_frames=True,
        deep_layers=deep,
        tensors=tensors,
    )


def _qwen3_vl(config: Config, **experts: Any) -> Model:  # noqa: ANN401 - fields of Model
    bias, vision = config["attention_bias"], qwen3_tower(config)
    model = decoder(config, qk_norm=True, qkv_bias=bias, output_bias=bias, vision=vision, **experts)
    return replace(model, rotary=rotated_in_sections(model.rotary))


def _qwen3_vl_moe(config: Config) -> Model:
    router, layers = softmax_router(normalized=True), every_nth_layer(config)
    return _qwen3_vl(config, **routed(config, router, layers, num_experts="num_experts", width="moe_intermediate_size"))


def _merger(size: int, merge: int, output: int, *, has_norm_bias: bool) -> Shapes:
    merged = size * merge**2
    inside = linear("merger.mlp.0", merged, merged) | linear("merger.mlp.2", merged, output)
    return {**norm("merger.ln_q", size, has_bias=has_norm_bias), **inside}


def _qwen2_vl(config: Config) -> Model:
    vision = config.vision
    size, output = vision["embed_dim"], vision["hidden_size"]
    width = size * vision["mlp_ratio"]
    tensors = patches(vision, size)
    for block in (f"blocks.{number}." for number in range(vision["depth"])):
        tensors |= {**norm(f"{block}norm1", size), **norm(f"{block}norm2", size), **attention(block, size)}
        tensors |= {**linear(f"{block}mlp.fc1", size, width), **linear(f"{block}mlp.fc2", width, size)}
    tensors |= _merger(size, vision["spatial_merge_size"], output, has_norm_bias=True)
    return _with_tower(config, tower(config, hidden_size=size, width=width, output_size=output, tensors=tensors))


def _qwen2_5_vl(config: Config) -> Model:
    vision = config.vision
    size, width, output = vision["hidden_size"], vision["intermediate_size"], vision["out_hidden_size"]
    tensors = patches(vision, size)
    for block in (f"blocks.{number}." for number in range(vision["depth"])):
        for name in ("norm1", "norm2"):
            tensors |= norm(f"{block}{name}", size, has_bias=False)
        tensors |= attention(block, size)
        for name in ("gate_proj", "up_proj"):
            tensors |= linear(f"{block}mlp.{name}", size, width)
        tensors |= linear(f"{block}mlp.down_proj", width, size)
    tensors |= _merger(size, vision["spatial_merge_size"], output, has_norm_bias=False)
    seconds = vision["tokens_per_second"]
    return _with_tower(
        config, tower(config, width=width, output_size=output, tokens_per_second=seconds, tensors=tensors)
    )


QWEN2_VL = Family(
    model_type="qwen2_vl",
    title="Qwen2-VL",
    text_type="qwen2_vl_text",
    keys=_QWEN2,
    vision_keys={**_PATCHES, "embed_dim": 1280, "hidden_size": 3584, "hidden_act": "quick_gelu", "mlp_ratio": 4},
    build=_qwen2_vl,
    refuse=refuse_dense_windows,
)

QWEN2_5_VL = Family(
    model_type="qwen2_5_vl",
    title="Qwen2.5-VL",
    text_type="qwen2_5_vl_text",
    keys=_QWEN2,
    vision_keys={
        **_PATCHES,
        "hidden_size": 3584,
        "hidden_act": "silu",
        "intermediate_size": 3420,
        "tokens_per_second": 4,
        "window_size": 112,
        "out_hidden_size": 3584,
        "fullatt_block_indexes": (7, 15, 23, 31),
    },
    build=_qwen2_5_vl,
    refuse=refuse_dense_windows,
)

_QWEN3: Mapping[str, Any] = {
    **DECODER,
    **_TOKENS,
    "vocab_size": 151936,
    "max_position_embeddings": 128000,
    "rope_theta": 500000.0,
    "attention_dropout": 0.0,
    "attention_bias": False,
}
QWEN3_TOWER: Mapping[str, Any] = {
    **_PATCHES,
    "depth": 27,
    "patch_size": 16,
    "hidden_size": 1152,
    "hidden_act": "gelu_pytorch_tanh",
    "intermediate_size": 4304,
    "out_hidden_size": 3584,
    "num_position_embeddings": 2304,
}
"""The keys of vision_config of Qwen3-VL and its successors."""
_DEEP_TOWER: Mapping[str, Any] = {**QWEN3_TOWER, "deepstack_visual_indexes": (8, 16, 24)}

QWEN3_VL = Family(
    model_type="qwen3_vl",
    title="Qwen3-VL (dense)",
    text_type="qwen3_vl_text",
    file_names=NESTED,
    keys={
        **_QWEN3,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": Optional(32),
        "head_dim": 128,
    },
    vision_keys=_DEEP_TOWER,
    build=_qwen3_vl,
)

QWEN3_VL_MOE = Family(
    model_type="qwen3_vl_moe",
    title="Qwen3-VL-30B-A3B, Qwen3-VL-235B-A22B",
    text_type="qwen3_vl_moe_text",
    file_names=NESTED,
    stacks_experts=True,
    keys={
        **_QWEN3,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": Optional(),
        "decoder_sparse_step": 1,
        "mlp_only_layers": Optional(),
        "moe_intermediate_size": 1408,
        "num_experts": 60,
        "num_experts_per_tok": 4,
    },
    aliases={"num_local_experts": "num_experts"},
    vision_keys=_DEEP_TOWER,
    build=_qwen3_vl_moe,
)
