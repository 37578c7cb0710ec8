"""Gemma-4 with its vision tower: patches of images in rows of one length, averaged to tokens, before the text decoder.

In layers with a window the tokens of an image attend to all of that image, where the file says so. Sound is not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from megatron_trainjob.families.config import Config, Optional
from megatron_trainjob.families.family import refused
from megatron_trainjob.families.gemma4 import GEMMA4_TEXT
from megatron_trainjob.families.model import Model
from megatron_trainjob.families.qwen_vl import Shapes, norm
from megatron_trainjob.families.vision import BOUNDS, OF_PARTS, PREFIX, SCALES, Vision
from megatron_trainjob.violation import Violation

_TOWER, _EMBEDDER = "vision_tower", "embed_vision"
_CHANNELS = 3
_ROTATION = "axial"

_OUTER: Mapping[str, Any] = {"image_token_id": Optional(258880), "video_token_id": Optional(258884)}
_VISION: Mapping[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 16,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "head_dim": 64,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "attention_dropout": 0.0,
    "pooling_kernel_size": 3,
    "patch_size": 16,
    "position_embedding_size": 10240,
    "use_clipped_linears": False,
    "standardize": False,
}


def _linear(name: str, inputs: int, outputs: int, vision: Config) -> Shapes:
    """A linear of the tower, and its bounds where it has any."""
    bounds: Shapes = {f"{name}.{bound}": () for bound in BOUNDS} if vision["use_clipped_linears"] else {}
    return {f"{name}.linear.weight": (outputs, inputs), **bounds}


def _layer(block: str, vision: Config) -> Shapes:
    size, width, head = vision["hidden_size"], vision["intermediate_size"], vision["head_dim"]
    queries, keys = vision["num_attention_heads"] * head, vision["num_key_value_heads"] * head
    found = _linear(f"{block}self_attn.q_proj", size, queries, vision)
    for name in ("k_proj", "v_proj"):
        found |= _linear(f"{block}self_attn.{name}", size, keys, vision)
    found |= _linear(f"{block}self_attn.o_proj", queries, size, vision)
    for name in ("q_norm", "k_norm"):
        found |= norm(f"{block}self_attn.{name}", head, has_bias=False)
    for name in ("gate_proj", "up_proj"):
        found |= _linear(f"{block}mlp.{name}", size, width, vision)
    found |= _linear(f"{block}mlp.down_proj", width, size, vision)
    for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
        found |= norm(f"{block}{name}_layernorm", size, has_bias=False)
    return found


def _tensors(vision: Config) -> Shapes:
    """Those of the tower without the linear into the decoder."""
    size = vision["hidden_size"]
    found: Shapes = {
        "patch_embedder.position_embedding_table": (2, vision["position_embedding_size"], size),
        "patch_embedder.input_proj.weight": (size, _CHANNELS * vision["patch_size"] ** 2),
    }
    for number in range(vision["num_hidden_layers"]):
        found |= _layer(f"encoder.layers.{number}.", vision)
    return found | ({name: (size,) for name in SCALES} if vision["standardize"] else {})


def _vision(config: Config) -> Vision:
    vision, output = config.vision, config["hidden_size"]
    tensors = {f"{_TOWER}.{name}": shape for name, shape in _tensors(vision).items()}
    tensors[f"{_EMBEDDER}.embedding_projection.weight"] = (output, vision["hidden_size"])
    return Vision(
        depth=vision["num_hidden_layers"],
        hidden_size=vision["hidden_size"],
        width=vision["intermediate_size"],
        num_heads=vision["num_attention_heads"],
        channels=_CHANNELS,
        patch_size=vision["patch_size"],
        temporal_patch_size=1,
        merge_size=vision["pooling_kernel_size"],
        output_size=output,
        image_token=config["image_token_id"],
        video_token=-1,
        sections=(),
        pads_images=True,
        longest_side=vision["position_embedding_size"],
        sees_whole=config["use_bidirectional_attention"] == "vision",
        modules=(f"{PREFIX}{_TOWER}", f"{PREFIX}{_EMBEDDER}"),
        tensors=tensors,
    )


def _gemma4(config: Config) -> Model:
    return replace(GEMMA4_TEXT.build(config), vision=_vision(config))


def _refuse_gemma4(config: Config) -> Iterator[Violation]:
    yield from GEMMA4_TEXT.refuse(config)
    vision = config.vision
    heads, keys = vision["num_attention_heads"], vision["num_key_value_heads"]
    if "vision_config" not in config.raw:
        message = "a file without it has no tower, and is trained as gemma4_text: save its decoder as Gemma4ForCausalLM"
        yield refused("vision_config", None, message)
    if config["image_token_id"] is None:
        yield refused("image_token_id", None, "must be the token that stands for a part of an image; correct it")
    if config.raw.get("audio_config") is not None:
        message = "the tower for sound is not trained here; take a model without it, whose file says null"
        yield refused("audio_config", config.raw["audio_config"], message)
    if heads % keys:
        message = f"{heads} attention heads of the tower are not divisible into so many groups"
        yield refused("vision_config.num_key_value_heads", keys, message)
    if vision["head_dim"] % 4:
        message = "must be a multiple of 4: half of its pairs rotate by column, half by row"
        yield refused("vision_config.head_dim", vision["head_dim"], message)
    if vision["attention_dropout"]:
        message = "a tower is trained without dropout; set it to 0"
        yield refused("vision_config.attention_dropout", vision["attention_dropout"], message)
    kind = (vision.raw.get("rope_parameters") or {}).get("rope_type", _ROTATION)
    if kind != _ROTATION:
        yield refused("vision_config.rope_parameters.rope_type", kind, f"must be {_ROTATION}")


GEMMA4 = replace(
    GEMMA4_TEXT,
    model_type="gemma4",
    title="Gemma-4-26B-A4B, Gemma-4-31B",
    text_type="gemma4_text",
    keys={**GEMMA4_TEXT.keys, **_OUTER},
    vision_keys=_VISION,
    file_names=OF_PARTS,
    object_names=OF_PARTS,
    scales_images=True,
    build=_gemma4,
    refuse=_refuse_gemma4,
)
