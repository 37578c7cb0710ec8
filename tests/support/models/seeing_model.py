"""A tiny model with a vision tower, tokenizer, template and image processor: what a run needs to train on images."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.support.data import vision
from tests.support.models import prediction_model, tiny_model


def make(name: str, root: Path, *, predicts_further: bool = False) -> Path:
    """The folder of a model whose tokens for images are those of its tokenizer.

    predicts_further: it has a layer for multi-token prediction.
    """
    kind, _ = tiny_model.MODELS[name]
    own = vision.config(kind)
    ids = {key: value for key, value in own.items() if key.endswith(("_token_id", "_token_index"))}
    make_model = prediction_model.make_seeing if predicts_further else tiny_model.make
    directory = make_model(name, root, **ids)
    config = (directory / "config.json").read_text()
    vision.write(directory, kind)
    (directory / "config.json").write_text(config)
    return directory


def write_rows(folder: Path, path: Path | None = None, *, rows: int = 12) -> Path:
    """Conversations about pictures of several sizes in the folder; every third has none, every fourth has two.

    path: of the rows, in the folder by default.
    """
    return _write(path or folder / "rows.jsonl", [_row(folder, index) for index in range(rows)])


def write_pairs(folder: Path, path: Path | None = None, *, rows: int = 12) -> Path:
    """The same with a rejected answer each."""
    pairs = [{**_row(folder, index), "rejected_response": f"None of {index}?"} for index in range(rows)]
    return _write(path or folder / "pairs.jsonl", pairs)


def _row(folder: Path, index: int) -> dict[str, Any]:
    number = 0 if index % 3 == 0 else 2 if index % 4 == 0 else 1
    files = [vision.save(folder / f"{index}-{each}.png", 16 + 8 * (index % 3), 24, index) for each in range(number)]
    turns = [
        {"role": "user", "content": f"{'<image>' * number}What is it? ({index})"},
        {"role": "assistant", "content": f"Number {index}."},
    ]
    return {"messages": turns, "images": [str(file) for file in files]}


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
