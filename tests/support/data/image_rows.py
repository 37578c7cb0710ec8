"""Rows with images as the encoder of a model's folder makes items of them, and the pictures that they name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import EllipsisType
from typing import Any

from transformers import AutoTokenizer

from megatron_trainer.data.conversation.formats import Recognition
from megatron_trainer.data.encoding.encode import Encoded, Encoder, EncodeSettings
from megatron_trainer.data.row import Record
from megatron_trainer.data.values import Rejection
from megatron_trainer.data.vision.model import image_rows_of
from megatron_trainjob.args.tree import TrainArgs
from tests.support.data import vision

SIZES = {"a.png": (40, 24), "b.jpg": (33, 47), "c.png": (9, 90)}
"""Width and height of each picture, in pixels."""


def pictures(folder: Path) -> Path:
    """The folder with three pictures beside a file of rows."""
    for seed, (name, (width, height)) in enumerate(SIZES.items()):
        vision.save(folder / name, width, height, seed)
    (folder / "data.jsonl").write_text("")
    return folder


def encoder_of(
    model: Path,
    recognition: Recognition | None = None,
    *,
    cache: Path | None = None,
    args: TrainArgs | None = None,
    **settings: Any,
) -> tuple[Encoder, Any]:
    """The encoder of a model's folder, and what reads the images of its rows."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    config = json.loads((model / "config.json").read_text())
    images = image_rows_of(args or TrainArgs(), model, config, tokenizer, cache)
    chosen = EncodeSettings(recognition=recognition or Recognition(), vision=images.settings, **settings)
    return Encoder(tokenizer, chosen, images), images


def encode(encoder: Encoder, row: Mapping[str, Any], folder: Path) -> Encoded | Rejection:
    """What becomes of a row of the file in this folder."""
    [result] = encoder.encode([Record(0, str(folder / "data.jsonl"), 1, row)])
    return result


def text(*parts: str | EllipsisType) -> list[dict[str, str]]:
    """Content parts: a string is text, ... an image."""
    return [{"type": "image"} if part is ... else {"type": "text", "text": part} for part in parts]


def turns(question: object, answer: str = "Yes.") -> list[dict[str, Any]]:
    """A question of such parts and its answer."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
