"""Asks the trained model about the held-out pictures, with transformers alone, and prints the share of right answers.

python examples/vision/show_result.py [--data .cache/vision] [--model FOLDER]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, Qwen2VLForConditionalGeneration


def main() -> None:
    """Reads the command line and prints the share."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(".cache/vision"))
    parser.add_argument("--model", type=Path, required=True, help="folder of the exported model (hf/ of the run)")
    given = parser.parse_args()
    print(f"held-out pictures read right: {100 * accuracy(given.model, given.data):.1f} %")


@torch.no_grad()
def accuracy(model_folder: Path, data: Path) -> float:
    """The share of held-out pictures whose digit the model answers; 0.1 is chance."""
    model = Qwen2VLForConditionalGeneration.from_pretrained(model_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    processor = AutoImageProcessor.from_pretrained(data / "model", backend="pil")
    rows = [json.loads(line) for line in (data / "held_out.jsonl").read_text().splitlines()]
    right = sum(answer(model, tokenizer, processor, row, data) == row["messages"][1]["content"] for row in rows)
    return right / len(rows)


def answer(model: torch.nn.Module, tokenizer: object, processor: object, row: dict, data: Path) -> str:
    """The model's answer to the question of a row."""
    pictures = [Image.open(data / name).convert("RGB") for name in row["images"]]
    seen = processor(images=pictures, return_tensors="pt")
    count = int(seen["image_grid_thw"].prod()) // processor.merge_size**2
    question = [{"type": "image"}, {"type": "text", "text": row["messages"][0]["content"].removeprefix("<image>")}]
    turns = [{"role": "user", "content": question}]
    shown = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(shown.replace("<|image_pad|>", "<|image_pad|>" * count), return_tensors="pt")["input_ids"]
    kinds = (ids == model.config.image_token_id).int()
    logits = model(input_ids=ids, mm_token_type_ids=kinds, **seen).logits
    return str(tokenizer.decode(logits[0, -1].argmax()))


if __name__ == "__main__":
    main()
