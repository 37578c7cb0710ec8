"""Training on files of images and videos: the loss and the gradient of each step are those of transformers.

Each step has one row of text alone, one with an image, one with three images of odd sizes, one with a video of known
rate, and one of both; models that read no videos have images in their place. The truth is a plain loop: transformers'
processor and model, AdamW.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.data import vision
from tests.support.models import seeing_model
from tests.support.ranks import tiny_run

pytestmark = [pytest.mark.dist, pytest.mark.slow]

STEPS, ROWS, RATE, FPS = 2, 5, 1e-3, 3.0
ALL_TRAINED = {"freeze_vit": False, "freeze_aligner": False}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one rank": (1, {}),
    "padded": (1, {"padding_free": False, "micro_batch_size": ROWS}),
    "packed": (1, {"packing": True, "packing_length": 4096, "global_batch_size": 1, "train_iters": 1}),
    "tp2 sp": (2, {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
    "pp2": (2, {"pipeline_model_parallel_size": 2}),
    "cp2": (2, {"context_parallel_size": 2}),
}
CASES = [
    *(("qwen2_5_vl", layout) for layout in ("one rank", "padded", "packed", "tp2 sp", "pp2", "cp2")),
    *(("qwen3_vl", layout) for layout in ("one rank", "packed", "tp2 sp", "pp2", "cp2")),
    *(("qwen3_vl_moe", layout) for layout in ("one rank", "pp2")),
    *(("qwen3_5", layout) for layout in ("one rank", "packed", "tp2 sp", "pp2")),
    *(("internvl", layout) for layout in LAYOUTS),
    *(("internvl_gpt_oss", layout) for layout in ("one rank", "packed")),
    *(("llama4", layout) for layout in LAYOUTS),
]
IMAGES_ALONE = ("llama4",)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("films")


def write_rows(folder: Path, *, with_videos: bool) -> Path:
    """The rows of all steps, and their files."""
    lines = []
    for step in range(STEPS):
        clip = folder / f"clip{step}"
        for number in range(5 + step):
            vision.save(clip / f"{number}.png", 33, 26, seed=step + number)
        sizes = ((40, 24), (9, 60), (25, 31), (16, 16))
        pictures = [
            vision.save(folder / f"{step}-{number}.png", *size, seed=number).name for number, size in enumerate(sizes)
        ]
        film = {"frames": clip.name, "fps": FPS}
        lines += [
            _row(f"Say {step}."),
            _row("<image>What is it?", images=pictures[:1]),
            _row("<image>One<image>two<image>three?", images=pictures[1:]),
        ]
        lines += (
            [
                _row("<video>What happens?", videos=[film]),
                _row("Before <image> and after <video>?", images=pictures[:1], videos=[[f"{clip.name}/0.png"] * 3]),
            ]
            if with_videos
            else [
                _row("<image>What happens?", images=[f"{clip.name}/0.png"]),
                _row("Before <image> and after <image>?", images=pictures[1:3]),
            ]
        )
    path = folder / f"rows-{with_videos}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def _row(question: str, **media: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": f"Number {len(question)}."}]
    return {"messages": turns, **media}


def truth(name: str, root: Path) -> list[dict[str, float]]:
    """The loss and the gradient's norm of each step of transformers."""
    kept = root / f"truth-{name}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    import torch
    from transformers import AutoModelForImageTextToText

    directory, rows = seeing_model.make(name, root), write_rows(root, with_videos=name not in IMAGES_ALONE)
    model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32)
    processor = vision.processor(directory, name)
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
    found = []
    for step in range(STEPS):
        total, count = torch.zeros(()), 0
        for row in lines[step * ROWS : (step + 1) * ROWS]:
            inputs, first, end = _inputs(processor, row, root)
            logits, labels = model(**inputs).logits[0, first - 1 : end - 1], inputs["input_ids"][0, first:end]
            total = total + torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
            count += len(labels)
        (total / count).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append({"loss": float(total / count), "norm": float(norm)})
    kept.write_text(json.dumps(found))
    return found


def _inputs(processor: Any, row: dict[str, Any], root: Path) -> tuple[dict[str, Any], int, int]:
    """The model's inputs, the first token of the answer and the one behind its end."""
    import re

    import numpy as np
    from PIL import Image
    from transformers.video_utils import VideoMetadata

    question, answer = (turn["content"] for turn in row["messages"])
    parts = [part for part in re.split("(<image>|<video>)", question) if part]
    content = [
        {"type": part[1:6]} if part in ("<image>", "<video>") else {"type": "text", "text": part} for part in parts
    ]
    turns = [{"role": "user", "content": content}]
    both = [*turns, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    given: dict[str, Any] = {}
    if "images" in row:
        given["images"] = [Image.open(root / name).convert("RGB") for name in row["images"]]
    for film in row.get("videos", ()):
        is_rated = isinstance(film, dict)
        names = sorted((root / film["frames"]).iterdir()) if is_rated else [root / name for name in film]
        frames = np.stack([np.asarray(Image.open(name).convert("RGB")) for name in names])
        known = VideoMetadata(
            total_num_frames=len(frames), fps=FPS if is_rated else 2.0, frames_indices=list(range(len(frames)))
        )
        is_cut = processor.__class__.__name__.startswith("InternVL")  # sees all frames
        sampling = {"do_sample_frames": is_rated and not is_cut, "fps": 2.0}
        given |= {"videos": [frames], "videos_kwargs": {"video_metadata": [known], **sampling}}
    prompt, whole = (
        processor(
            text=[processor.apply_chat_template(each, tokenize=False, add_generation_prompt=len(each) == 1)],
            return_tensors="pt",
            **given,
        )
        for each in (turns, both)
    )
    ids = whole["input_ids"][0].tolist()
    end = len(ids) - ids[::-1].index(processor.tokenizer.eos_token_id)
    inputs = {key: value for key, value in whole.items() if key != "video_metadata"}
    if "pixel_values" in inputs:  # in bfloat16 where a model was trained so
        inputs["pixel_values"] = inputs["pixel_values"].float()
    return inputs, prompt["input_ids"].shape[1], end


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_training_on_images_and_videos_is_that_of_transformers(name: str, layout: str, root: Path, tmp_path: Path):
    expected, (ranks, settings) = truth(name, root), LAYOUTS[layout]
    given = {
        **ALL_TRAINED,
        "train_iters": STEPS,
        "global_batch_size": ROWS,
        "lr": RATE,
        "lr_decay_style": "constant",
        "weight_decay": 0.0,
        "adam_beta2": 0.95,
        "dataloader_type": "single",
        "dataset_shuffle": False,
        "calculate_per_token_loss": True,
        "max_length": 512,
        "moe_aux_loss_coeff": 0.0,
        **settings,
    }
    model, rows = seeing_model.make(name, root), root / f"rows-{name not in IMAGES_ALONE}.jsonl"
    if layout == "packed":  # all rows of a step in one
        lines = rows.read_text().splitlines(keepends=True)
        rows = tmp_path / "first.jsonl"
        rows.write_text("".join(lines[:ROWS]))
        given |= {"image_root": str(root)}
    run = tiny_run.train(tiny_run.arguments(model, rows, tmp_path / "run", **given), ranks=ranks)
    assert run.exit_code == 0, run.message
    steps = len(run.column("lm loss"))
    assert steps == (1 if layout == "packed" else STEPS)
    assert run.column("lm loss") == pytest.approx([line["loss"] for line in expected[:steps]], abs=1e-4)
    assert run.column("grad_norm") == pytest.approx([line["norm"] for line in expected[:steps]], rel=1e-3)
