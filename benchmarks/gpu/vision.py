"""Training with images on one card: this trainer and transformers' on the same rows in order, tokens/s, peak memory.

python3 benchmarks/gpu/vision.py OUT [--train full frozen lora] [--rows varied equal] [--steps 20]
    on a processor, to try the program:
    --shape tiny --device cpu --micro-rows 2 --max-pixels 12544 --max-length 256 --steps 8

The model has Qwen2.5-VL-3B's shape and random weights in bfloat16, the photographs are drawn and stored as JPEG, the
texts are made up; nothing is asked of a network. `varied` rows have none to three images of many sizes and texts of
many lengths; `equal` ones have the same number of tokens each, so that no padding can be saved. A token of an image
counts like one of text, padding does not count.

    full, frozen, lora          all parts train; the language model alone (the defaults of this trainer); adapters on it
    ours                        the trainer's defaults
    ours packed                 as many rows in one as fit, recomputed in the tower alone, or not at all; the rows
                                twice, for as many steps
    transformers checkpointing  its Trainer, weights and optimizer in bfloat16, with gradient checkpointing
    transformers fastest        the same without

Rates are divided by the better one of transformers' so far, which run first. Its attention is flash-attn where that is
installed, else sdpa; pixels are made in as many worker processes on both sides. Needs beside torch, transformers and
peft: accelerate, pillow, megatron-core and, on a card, TransformerEngine.
"""

import argparse
import io
import json
import os
import random
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from beside_peer import call, print_table, rates, steps
from PIL import Image
from shapes import QWEN2_5_VL_3B, TINY_VL
from transformers import AutoConfig, AutoModelForImageTextToText

HERE = Path(__file__).parent
SHAPES = {"qwen2.5-vl-3b": QWEN2_5_VL_3B, "tiny": TINY_VL}
SPECIAL = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
PIXELS_OF_A_TOKEN = 28 * 28
CASES = {
    "transformers fastest": {"checkpointing": False},
    "transformers checkpointing": {"checkpointing": True},
    "ours": {},
    "ours packed": {"packing": True, "recompute_granularity": "none"},
    "ours packed, nothing recomputed": {
        "packing": True,
        "recompute_granularity": "none",
        "vit_gradient_checkpointing": False,
    },
}
TRAINED = {
    "full": {"train_type": "full", "freeze_vit": False, "freeze_aligner": False, "lr": 1e-5},
    "frozen": {"train_type": "full", "lr": 1e-5},
    "lora": {"train_type": "lora", "lora_rank": 8, "lora_alpha": 16, "lora_dropout": 0.0, "lr": 1e-4},
}


def main() -> None:
    given = options()
    given.out.mkdir(parents=True, exist_ok=True)
    model = make_model(given)
    rows_of_a_step = f"{given.micro_rows} x {given.num_micro_batches} rows a step"
    print(f"{given.shape}, {rows_of_a_step}, at most {given.max_pixels} pixels an image", flush=True)
    for rows in given.rows:
        data = write_rows(given, rows)
        for kind in given.train:
            runs = ((name, measure(given, model, data, kind, name)) for name in given.cases)
            print_table(f"{kind}, {data.stem} rows", "transformers", ("first loss", "last loss"), runs)


def options() -> argparse.Namespace:
    known = argparse.ArgumentParser()
    known.add_argument("out", type=Path)
    known.add_argument("--train", nargs="+", choices=TRAINED, default=list(TRAINED))
    known.add_argument("--rows", nargs="+", choices=("varied", "equal"), default=["varied", "equal"])
    known.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    known.add_argument("--shape", choices=SHAPES, default="qwen2.5-vl-3b")
    known.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    known.add_argument("--max-pixels", type=int, default=1024 * PIXELS_OF_A_TOKEN)
    known.add_argument("--max-length", type=int, default=4096, help="of a row; none is as long")
    known.add_argument("--micro-rows", type=int, default=4)
    known.add_argument("--num-micro-batches", type=int, default=2)
    known.add_argument("--steps", type=int, default=20)
    known.add_argument("--workers", type=int, default=4)
    known.add_argument("--timeout", type=int, default=240, help="seconds for one run")
    given = known.parse_args()
    given.out = given.out.absolute()
    return given


def make_model(given: argparse.Namespace) -> Path:
    """A folder with random weights, a tokenizer of bytes and Qwen2.5-VL's image processor, which both load."""
    folder = given.out / "model"
    if (folder / "preprocessor_config.json").exists():
        return folder
    tokenizer = runpy.run_path(str(HERE.parents[1] / "examples/vision/make_model.py"))["make_tokenizer"]()
    ids = {key: tokenizer.convert_tokens_to_ids(token) for key, token in SPECIAL.items()}
    torch.manual_seed(1)
    with torch.device(given.device):
        config = AutoConfig.for_model(**SHAPES[given.shape], **ids)
        made = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "size": {"shortest_edge": 4 * PIXELS_OF_A_TOKEN, "longest_edge": 16384 * PIXELS_OF_A_TOKEN},
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def write_rows(given: argparse.Namespace, rows: str) -> Path:
    """Questions about photographs, and answers whose lengths vary; about a third of a row's tokens are text."""
    folder = given.out / rows
    folder.mkdir(exist_ok=True)
    chance = random.Random(1)
    lines = []
    for number in range(given.steps * given.micro_rows * given.num_micro_batches):
        count = 1 if rows == "equal" else chance.choice((0, 1, 1, 1, 1, 2, 2, 3))
        names = [draw(given, folder, f"{number}-{place}", rows, chance) for place in range(count)]
        room = given.max_length // 4
        length = room // 2 if rows == "equal" else chance.randint(room // 16, room)
        turns = [
            {"role": "user", "content": "<image>" * count + "What is there to be seen?"},
            {"role": "assistant", "content": text_of(length, chance)},
        ]
        lines.append(json.dumps({"messages": turns} | ({"images": names} if names else {})))
    path = given.out / f"{rows}.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def text_of(length: int, chance: random.Random) -> str:
    """Made-up words, as many characters (and so tokens) as that."""
    words = ["".join(chance.choices("aeiourstnlmdkp", k=chance.randint(2, 9))) for _ in range(length // 2)]
    return " ".join(words)[: length - 1] + "."


def draw(given: argparse.Namespace, folder: Path, name: str, rows: str, chance: random.Random) -> str:
    """A photograph of smooth shades and noise, stored as JPEG, up to 1.5 times as large as max_pixels allows."""
    side = given.max_pixels**0.5
    width, height = (side, side) if rows == "equal" else (side * chance.uniform(0.3, 1.5) for _ in range(2))
    y, x = np.mgrid[0 : max(28, int(height)), 0 : max(28, int(width))] / side
    phases = np.random.default_rng(chance.randrange(2**32))
    shades = [np.sin(x * phases.uniform(2, 30) + y * phases.uniform(2, 30) + phases.uniform(0, 6)) for _ in range(3)]
    noisy = np.stack(shades, axis=-1) * 100 + 128 + phases.normal(0, 8, (*x.shape, 1))
    stored = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(stored, "JPEG", quality=90)
    (folder / f"{name}.jpg").write_bytes(stored.getvalue())
    return f"{folder.name}/{name}.jpg"


def measure(given: argparse.Namespace, model: Path, data: Path, kind: str, name: str) -> dict[str, float] | str:
    """What a run measured, or why it ended."""
    folder = given.out / f"{kind}-{data.stem}-{name.replace(' ', '-')}"
    run = run_ours if name.startswith("ours") else run_transformers
    with (given.out / f"{folder.name}.log").open("w") as log:
        code = run(given, model, data, kind, folder, CASES[name], log)
    text = Path(log.name).read_text()
    if code:
        return "out of memory" if "OutOfMemory" in text or "out of memory" in text else f"exit {code}, see {log.name}"
    measured = summary(folder / "logging.jsonl")
    for checkpoint in folder.glob("iter_*"):
        shutil.rmtree(checkpoint)
    return measured


def run_ours(given, model, data, kind, folder, case, log) -> int:
    arguments = {
        "model": str(model),
        "dataset": [str(data)],
        "save": str(folder),
        "add_version": False,
        "max_length": given.max_length,
        "max_pixels": given.max_pixels,
        "micro_batch_size": given.micro_rows,
        "global_batch_size": given.micro_rows * given.num_micro_batches,
        "train_iters": given.steps,
        "dataloader_type": "single",
        "dataset_shuffle": False,
        "calculate_per_token_loss": False,  # as transformers' Trainer: the first losses are then equal
        "log_interval": 1,
        "num_workers": given.workers,
        "no_save_optim": True,
        "lr_decay_style": "constant",
        "weight_decay": 0.0,
        **TRAINED[kind],
        **case,
    }
    if "packing" in case:  # one row as long as those of a micro-batch together
        length = given.micro_rows * given.max_length // 2
        packed = {"packing_length": length, "micro_batch_size": 1, "global_batch_size": given.num_micro_batches}
        arguments |= {**packed, "train_iters": None, "max_epochs": 2}
    (given.out / "ours.yaml").write_text(yaml.safe_dump({k: v for k, v in arguments.items() if v is not None}))
    environment = {"NPROC_PER_NODE": "1", "MTJ_TERMINATION_LOG": f"{folder}.failure"}
    if given.device == "cpu":
        environment["MTJ_DEVICE"] = "cpu"
    root = str(HERE.parents[1] / "trainer")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    command = ["-m", "megatron_trainer", "sft", "--config", str(given.out / "ours.yaml")]
    return call(command, environment, log, given.timeout)


def run_transformers(given, model, data, kind, folder, case, log) -> int:
    settings = {
        "model": str(model),
        "rows": str(data),
        "folder": str(folder),
        "device": given.device,
        "kind": kind,
        "rate": TRAINED[kind]["lr"],
        "max_pixels": given.max_pixels,
        "micro_rows": given.micro_rows,
        "num_micro_batches": given.num_micro_batches,
        "steps": given.steps,
        "workers": given.workers,
        **case,
    }
    return call([str(HERE / "vision_transformers.py"), json.dumps(settings)], {}, log, given.timeout)


def summary(log: Path) -> dict[str, float]:
    """The rates, the first and the last loss."""
    lines = steps(log, "grad_norm")
    return {**rates(lines), "first loss": loss_of(lines[0]), "last loss": loss_of(lines[-1])}


def loss_of(line: dict) -> float:
    """Of a step, as either names it."""
    return line["lm loss"] if "lm loss" in line else line["loss"]


if __name__ == "__main__":
    sys.exit(main())
