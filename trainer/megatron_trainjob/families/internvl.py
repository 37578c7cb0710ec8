"""InternVL3 and InternVL3.5 as transformers has them: tiles of an image through a tower, a projector, a text decoder.

The decoder is that of another family, which text_config names; its keys and its build are that family's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from megatron_trainjob.families.config import Config
from megatron_trainjob.families.family import Family, refused
from megatron_trainjob.families.gpt_oss import GPT_OSS
from megatron_trainjob.families.model import Model
from megatron_trainjob.families.qwen import QWEN2, QWEN3, QWEN3_MOE
from megatron_trainjob.families.qwen_vl import Shapes, linear, norm
from megatron_trainjob.families.vision import BESIDE, OF_PARTS, PREFIX, Vision
from megatron_trainjob.violation import Violation

_STORED = "internvl"
_TOWER, _PROJECTOR = "vision_tower", "multi_modal_projector"
_OUTER: Mapping[str, Any] = {
    "image_token_id": 151667,
    "downsample_ratio": 0.5,
    "projector_hidden_act": "gelu",
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "default",
    "tie_word_embeddings": True,
}
_VISION: Mapping[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "attention_bias": False,
    "use_qk_norm": False,
    "intermediate_size": 4096,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_dropout": 0.0,
    "projection_dropout": 0.0,
    "initializer_range": 0.02,
    "norm_type": "layer_norm",
    "layer_norm_eps": 1e-6,
    "image_size": (448, 448),
    "patch_size": (14, 14),
    "num_channels": 3,
    "use_mask_token": False,
    "use_absolute_position_embeddings": True,
    "layer_scale_init_value": 0.1,
    "use_mean_pooling": True,
}
_DROPOUTS = ("hidden_dropout_prob", "attention_dropout", "projection_dropout")
_NORMS = ("layer_norm", "rms_norm")


def _sides(value: int | list[int] | tuple[int, ...]) -> tuple[int, int]:
    """(height, width)."""
    return (value[0], value[1]) if isinstance(value, list | tuple) else (value, value)


def _merge(config: Config) -> int:
    """Patches along each side of what becomes one token, as transformers rounds it."""
    return max(1, int(1 / config["downsample_ratio"]))


def _tower(config: Config) -> Vision:
    vision = config.vision
    size, merge, output = vision["hidden_size"], _merge(config), config["hidden_size"]
    merged = size * merge**2
    tensors = {f"{_TOWER}.{name}": shape for name, shape in _tensors(vision).items()}
    projector = norm("layer_norm", merged) | linear("linear_1", merged, output) | linear("linear_2", output, output)
    tensors |= {f"{_PROJECTOR}.{name}": shape for name, shape in projector.items()}
    return Vision(
        depth=vision["num_hidden_layers"],
        hidden_size=size,
        width=vision["intermediate_size"],
        num_heads=vision["num_attention_heads"],
        channels=vision["num_channels"],
        patch_size=_sides(vision["patch_size"])[0],
        temporal_patch_size=1,
        merge_size=merge,
        output_size=output,
        image_token=config["image_token_id"],
        video_token=config["image_token_id"],
        sections=(),
        separates_frames=True,
        layer_scale=vision["layer_scale_init_value"],
        tile=_sides(vision["image_size"])[0],
        modules=(f"{PREFIX}{_TOWER}", f"{PREFIX}{_PROJECTOR}"),
        tensors=tensors,
    )


def _tensors(vision: Config) -> Shapes:
    """Those of the tower without the projector."""
    size, width = vision["hidden_size"], vision["intermediate_size"]
    (height, wide), (rows, columns) = _sides(vision["patch_size"]), _sides(vision["image_size"])
    found: Shapes = {
        "embeddings.cls_token": (1, 1, size),
        "embeddings.patch_embeddings.projection.weight": (size, vision["num_channels"], height, wide),
        "embeddings.patch_embeddings.projection.bias": (size,),
    }
    if vision["use_absolute_position_embeddings"]:
        found["embeddings.position_embeddings"] = (1, (rows // height) * (columns // wide) + 1, size)
    for number in range(vision["num_hidden_layers"]):
        found |= _layer(f"encoder.layer.{number}.", size, width, vision)
    return found if vision["use_mean_pooling"] else found | norm("layernorm", size)


def _layer(block: str, size: int, width: int, vision: Config) -> Shapes:
    has_norm_bias = vision["norm_type"] == "layer_norm"
    found: Shapes = {f"{block}lambda_{number}": (size,) for number in (1, 2)}
    for name in ("q_proj", "k_proj", "v_proj"):
        whole = linear(f"{block}attention.{name}", size, size)
        found |= {key: shape for key, shape in whole.items() if vision["attention_bias"] or not key.endswith("bias")}
    found |= linear(f"{block}attention.projection_layer", size, size)
    for name in ("q_norm", "k_norm") if vision["use_qk_norm"] else ():
        found |= norm(f"{block}attention.{name}", size, has_bias=False)
    for name in ("layernorm_before", "layernorm_after"):
        found |= norm(f"{block}{name}", size, has_bias=has_norm_bias)
    return found | linear(f"{block}mlp.fc1", size, width) | linear(f"{block}mlp.fc2", width, size)


def _refuse_tower(config: Config) -> Iterator[Violation]:
    """Towers that transformers does not run, or that would be trained otherwise than there."""
    vision = config.vision
    ratio, (rows, columns), (height, width) = (
        config["downsample_ratio"],
        _sides(vision["image_size"]),
        _sides(vision["patch_size"]),
    )
    if rows != columns or height != width or rows % height:
        message = f"tiles and patches must be square, and {rows} x {columns} pixels a multiple of {height} x {width}"
        yield refused("vision_config.image_size", vision["image_size"], message)
    elif not 0 < ratio <= 1 or 1 / ratio != int(1 / ratio) or (rows // height) % int(1 / ratio):
        message = f"must be one over a whole number that divides the {rows // height} patches of a side"
        yield refused("downsample_ratio", ratio, message)
    if vision["norm_type"] not in _NORMS:
        yield refused("vision_config.norm_type", vision["norm_type"], f"must be {' or '.join(_NORMS)}")
    for key in _DROPOUTS:
        if vision[key]:
            yield refused(f"vision_config.{key}", vision[key], "a tower is trained without dropout; set it to 0")
    if vision["use_mask_token"]:
        message = "the mask token is part of no image in training; set it to false, and take the tensor out"
        yield refused("vision_config.use_mask_token", True, message)
    if config["vision_feature_layer"] != -1:
        message = "features are those of the last layer; set it to -1"
        yield refused("vision_feature_layer", config["vision_feature_layer"], message)
    if config["vision_feature_select_strategy"] != "default":
        message = "the state in front of the patches is no patch; set it to default"
        yield refused("vision_feature_select_strategy", config["vision_feature_select_strategy"], message)


def _family(text: Family, model_type: str, title: str) -> Family:
    """InternVL around the decoder of another family."""

    def build(config: Config) -> Model:
        return replace(text.build(config), vision=_tower(config))

    def refuse(config: Config) -> Iterator[Violation]:
        yield from text.refuse(config)
        yield from _refuse_tower(config)

    return replace(
        text,
        model_type=model_type,
        stored_type=_STORED,
        transformers_type=_STORED,
        text_type=text.model_type,
        classifier="",
        title=title,
        keys={**text.keys, **_OUTER},
        vision_keys=_VISION,
        cuts_images=True,
        file_names=BESIDE,
        object_names=OF_PARTS,
        has_mxfp4=False,
        build=build,
        refuse=refuse,
    )


INTERNVL = _family(QWEN2, "internvl", "InternVL3 (Qwen2.5 inside)")
INTERNVL_QWEN3 = _family(QWEN3, "internvl_qwen3", "InternVL3.5 (Qwen3 inside)")
# peft splits fused experts into single ones for a text model by itself alone: here it adapts whole stacks.
INTERNVL_QWEN3_MOE = replace(
    _family(QWEN3_MOE, "internvl_qwen3_moe", "InternVL3.5-30B-A3B, InternVL3.5-241B-A28B"), stacks_experts=True
)
INTERNVL_GPT_OSS = _family(GPT_OSS, "internvl_gpt_oss", "InternVL3.5-GPT-OSS-20B-A4B-Preview")
