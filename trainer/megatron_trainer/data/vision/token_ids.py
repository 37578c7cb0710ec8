"""The ids of the tokens of images, as config.json or the tokenizer of a model names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from megatron_trainer.data.vision import canvas
from megatron_trainer.data.vision.tokens import VisionTokens, number_of_frame
from megatron_trainjob.families.vision import Vision

_AROUND = {"start": "<img>", "end": "</img>"}
"""Tokens around a tile of a tokenizer that does not name them."""


def of_patches(config: Mapping[str, Any], merge: int, *, separates_frames: bool) -> VisionTokens:
    """The tokens that config.json names. merge: patches along each side of what becomes one token."""
    return VisionTokens(
        image=config["image_token_id"],
        video=config.get("video_token_id", -1),
        start=config.get("vision_start_token_id", config.get("image_start_token_id", -1)),
        end=config.get("vision_end_token_id", config.get("image_end_token_id", -1)),
        merge=merge,
        separates_frames=separates_frames,
    )


def of_tiles(tokenizer: PreTrainedTokenizerBase, tower: Vision) -> VisionTokens:
    """The tokens around a tile are those that the tokenizer names, as transformers' processor reads them."""
    known = tokenizer.get_vocab()
    start, end = (getattr(tokenizer, f"{name}_image_token", text) for name, text in _AROUND.items())
    number = number_of_frame(1)
    leads = [tokenizer.encode(text, add_special_tokens=False) for text in (f" {number}", number)]
    return VisionTokens(
        image=tower.image_token,
        video=tower.video_token,
        start=known.get(start, -1),
        end=known.get(end, -1),
        merge=tower.merge_size,
        separates_frames=True,
        leads=tuple(sorted((tuple(lead) for lead in leads), key=len, reverse=True)),
    )


def of_canvas(tokenizer: PreTrainedTokenizerBase, tower: Vision) -> VisionTokens:
    """The tokens that transformers' processor writes by name, whatever config.json says of them."""
    known = tokenizer.get_vocab()
    return VisionTokens(
        image=tower.image_token,
        video=-1,
        start=known.get(canvas.START, -1),
        end=known.get(canvas.END, -1),
        merge=tower.merge_size,
        separates_tiles=True,
        lead=known.get(canvas.WHOLE, -1),
    )


def of_scaled(config: Mapping[str, Any], tower: Vision) -> VisionTokens:
    """The tokens that config.json names; those of videos and of sound stand for nothing that is read."""
    unread = (config.get("video_token_id"), config.get("audio_token_id"))
    return VisionTokens(
        image=tower.image_token,
        video=tower.video_token,
        start=config.get("boi_token_id", -1),
        end=config.get("eoi_token_id", -1),
        merge=tower.merge_size,
        unread=tuple(token for token in unread if token is not None),
    )
