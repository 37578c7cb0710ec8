"""A tiny model with a vision tower, tokenizer, template and image processor: what a run needs to train on images."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.data import vision
from tests.support.models import tiny_model


def make(name: str, root: Path) -> Path:
    """The folder of a model whose tokens for images are those of its tokenizer."""
    kind, _ = tiny_model.MODELS[name]
    own = vision.config(kind)
    ids = {key: value for key, value in own.items() if key.endswith("_token_id")}
    directory = tiny_model.make(name, root, **ids)
    config = (directory / "config.json").read_text()
    vision.write(directory, kind)
    (directory / "config.json").write_text(config)
    return directory


def write_rows(folder: Path, *, rows: int = 12) -> Path:
    """Conversations about pictures of several sizes; every third has none, and every fourth has two."""
    lines = []
    for index in range(rows):
        number = 0 if index % 3 == 0 else 2 if index % 4 == 0 else 1
        files = [vision.save(folder / f"{index}-{each}.png", 16 + 8 * (index % 3), 24, index) for each in range(number)]
        turns = [
            {"role": "user", "content": f"{'<image>' * number}What is it? ({index})"},
            {"role": "assistant", "content": f"Number {index}."},
        ]
        lines.append(json.dumps({"messages": turns, "images": [str(file) for file in files]}))
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path
