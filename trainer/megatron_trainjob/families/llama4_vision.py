"""Llama-4 with its vision tower: tiles of an image, four patches merged to a token, a linear into the text decoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from megatron_trainjob.families.config import Config
from megatron_trainjob.families.family import refused
from megatron_trainjob.families.llama4 import LLAMA4_TEXT
from megatron_trainjob.families.model import Model
from megatron_trainjob.families.qwen_vl import Shapes, linear, norm
from megatron_trainjob.families.vision import BESIDE, PREFIX, Vision
from megatron_trainjob.violation import Violation

_TOWER, _PROJECTOR = "vision_model", "multi_modal_projector"
_OUTER: Mapping[str, Any] = {"image_token_index": 200092}
_VISION: Mapping[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 34,
    "num_attention_heads": 16,
    "num_channels": 3,
    "intermediate_size": 5632,
    "vision_output_dim": 7680,
    "image_size": 448,
    "patch_size": 14,
    "initializer_range": 0.02,
    "pixel_shuffle_ratio": 0.5,
    "projector_input_dim": 4096,
    "projector_output_dim": 4096,
    "projector_dropout": 0.0,
    "attention_dropout": 0.0,
}
_DROPOUTS = ("projector_dropout", "attention_dropout")


def _patches_of_a_side(vision: Config) -> int:
    return int(vision["image_size"] // vision["patch_size"])


def _merge(vision: Config) -> int:
    """Patches along each side of what becomes one token."""
    return max(1, int(round(1 / vision["pixel_shuffle_ratio"])))


def _layer(block: str, vision: Config) -> Shapes:
    size, width = vision["hidden_size"], vision["intermediate_size"]
    found: Shapes = {}
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        found |= linear(f"{block}self_attn.{name}", size, size)
    found |= linear(f"{block}mlp.fc1", size, width) | linear(f"{block}mlp.fc2", width, size)
    return found | norm(f"{block}input_layernorm", size) | norm(f"{block}post_attention_layernorm", size)


def _tensors(vision: Config) -> Shapes:
    """Those of the tower without the linear into the decoder."""
    size, merged = vision["hidden_size"], vision["projector_input_dim"]
    output = vision["projector_output_dim"]
    found: Shapes = {
        "class_embedding": (size,),
        "positional_embedding_vlm": (_patches_of_a_side(vision) ** 2 + 1, size),
        "patch_embedding.linear.weight": (size, vision["num_channels"] * vision["patch_size"] ** 2),
        "vision_adapter.mlp.fc1.weight": (merged, vision["intermediate_size"]),
        "vision_adapter.mlp.fc2.weight": (output, output),
        **norm("layernorm_pre", size),
        **norm("layernorm_post", size),
    }
    for number in range(vision["num_hidden_layers"]):
        found |= _layer(f"model.layers.{number}.", vision)
    return found


def _vision(config: Config) -> Vision:
    vision, output = config.vision, config["hidden_size"]
    tensors = {f"{_TOWER}.{name}": shape for name, shape in _tensors(vision).items()}
    tensors[f"{_PROJECTOR}.linear_1.weight"] = (output, vision["vision_output_dim"])
    return Vision(
        depth=vision["num_hidden_layers"],
        hidden_size=vision["hidden_size"],
        width=vision["intermediate_size"],
        num_heads=vision["num_attention_heads"],
        channels=vision["num_channels"],
        patch_size=vision["patch_size"],
        temporal_patch_size=1,
        merge_size=_merge(vision),
        output_size=output,
        image_token=config["image_token_index"],
        video_token=-1,
        sections=(),
        tile=vision["image_size"],
        separates_tiles=True,
        modules=(f"{PREFIX}{_TOWER}", f"{PREFIX}{_PROJECTOR}"),
        tensors=tensors,
    )


def _llama4(config: Config) -> Model:
    return replace(LLAMA4_TEXT.build(config), vision=_vision(config))


def _refuse_llama4(config: Config) -> Iterator[Violation]:
    yield from LLAMA4_TEXT.refuse(config)
    vision = config.vision
    side, heads = vision["patch_size"], vision["num_attention_heads"]
    if vision["image_size"] % side:
        message = f"tiles must be a multiple of the {side} pixels of a patch"
        yield refused("vision_config.image_size", vision["image_size"], message)
    if (vision["hidden_size"] // heads) % 4:
        message = "must leave each head a multiple of 4 channels: half of its pairs rotate by column, half by row"
        yield refused("vision_config.num_attention_heads", heads, message)
    for key in _DROPOUTS:
        if vision[key]:
            yield refused(f"vision_config.{key}", vision[key], "a tower is trained without dropout; set it to 0")
    yield from _refuse_adapter(vision)


def _refuse_adapter(vision: Config) -> Iterator[Violation]:
    """Ratios that merge no whole patches, and widths of the parts behind the tower that do not meet."""
    ratio, along, size = vision["pixel_shuffle_ratio"], _patches_of_a_side(vision), vision["hidden_size"]
    merge = _merge(vision)
    if merge * ratio != 1 or int(along * ratio) * merge != along or int(size / ratio**2) != size * merge**2:
        message = f"must be one over a whole number that divides the {along} patches of a side"
        yield refused("vision_config.pixel_shuffle_ratio", ratio, message)
    elif vision["intermediate_size"] != size * merge**2:
        message = f"must be {size * merge**2}: {merge**2} merged patches of {size} channels each"
        yield refused("vision_config.intermediate_size", vision["intermediate_size"], message)
    for key in ("projector_input_dim", "vision_output_dim"):
        if vision[key] != vision["projector_output_dim"]:
            message = f"must equal projector_output_dim ({vision['projector_output_dim']})"
            yield refused(f"vision_config.{key}", vision[key], message)


LLAMA4 = replace(
    LLAMA4_TEXT,
    model_type="llama4",
    title="Llama-4-Scout, Llama-4-Maverick",
    text_type="llama4_text",
    keys={**LLAMA4_TEXT.keys, **_OUTER},
    aliases={"image_token_id": "image_token_index"},
    vision_keys=_VISION,
    cuts_images=True,
    file_names=BESIDE,
    object_names=BESIDE,
    build=_llama4,
    refuse=_refuse_llama4,
)
