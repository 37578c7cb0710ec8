"""Writes the real pictures of scikit-learn's handwritten digits, with a question and its answer for each.

    python examples/vision/make_data.py [--output .cache/vision]

1,500 rows to train on, the other 297 held out. Each picture is 8 x 8 pixels, enlarged to 32 x 32.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

NUM_TRAINED = 1500
SIDE = 32
QUESTION = "<image>Which digit is it?"


def main() -> None:
    """Reads the command line and writes what it names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(".cache/vision"))
    folder = parser.parse_args().output
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))
    for name, numbers in (("train", order[:NUM_TRAINED]), ("held_out", order[NUM_TRAINED:])):
        (folder / name).mkdir(parents=True, exist_ok=True)
        rows = [row(folder, name, int(number), digits) for number in numbers]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
        print(f"{folder / name}.jsonl: {len(rows)} rows")


def row(folder: Path, name: str, number: int, digits: object) -> dict[str, object]:
    """One question; the path of its picture is relative to the file of rows."""
    picture = Image.fromarray((digits.images[number] * 255 / 16).astype(np.uint8))
    picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / name / f"{number}.png")
    turns = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": str(digits.target[number])},
    ]
    return {"messages": turns, "images": [f"{name}/{number}.png"]}


if __name__ == "__main__":
    main()
