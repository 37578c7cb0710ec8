"""Encodes rows with images as training does, with the tiny model of a folder that sees."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from megatron_trainer.data.encoding.encode import Encoded, Encoder, EncodeSettings, Rejection
from megatron_trainer.data.row import Record
from megatron_trainer.data.vision.model import ImageRows, image_rows_of
from megatron_trainjob.args.tree import TrainArgs


def seeing(folder: Path, **given: Any) -> tuple[Encoder, ImageRows]:
    """The encoder and the images of the model in `folder`/model with these arguments."""
    model = folder / "model"
    tokenizer, config = AutoTokenizer.from_pretrained(model), json.loads((model / "config.json").read_text())
    images = image_rows_of(TrainArgs(**given), model, config, tokenizer, folder / "cache")
    assert images is not None
    return Encoder(tokenizer, EncodeSettings(vision=images.settings), images), images


def encoded(folder: Path, row: Mapping[str, Any], **given: Any) -> tuple[Encoded | Rejection, ImageRows]:
    """What a row of `folder`/data.jsonl becomes, and the images of the model."""
    encoder, images = seeing(folder, **given)
    [found] = encoder.encode([Record(0, str(folder / "data.jsonl"), 1, row)])
    return found, images
