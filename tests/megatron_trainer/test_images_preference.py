"""DPO on pairs with images against transformers: loss, rewards, log-probabilities, step by step, on one and two ranks.

The truth is a plain loop: transformers' processor and model, the loss as it is defined, AdamW.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.data import vision
from tests.support.models import seeing_model
from tests.support.ranks.ten_steps import GLOBAL, RATE, train

pytestmark = [pytest.mark.dist, pytest.mark.slow]

STEPS, BETA, ABSOLUTE = 3, 0.1, 1e-4
COMPARED = ("loss", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected")
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one rank": (1, {}),
    "tp2 sp": (2, {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
    "dp2": (2, {"micro_batch_size": 1}),
}


@pytest.fixture(scope="module", params=["qwen2_5_vl", "internvl"])
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name: str, tmp_path_factory) -> Path:
    return seeing_model.make(name, tmp_path_factory.mktemp("seeing"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    return seeing_model.write_pairs(tmp_path_factory.mktemp("pictures"), rows=STEPS * GLOBAL)


@pytest.fixture(scope="module")
def truth(name: str, model: Path, rows: Path) -> list[dict[str, float]]:
    """What each step should say: the whole model trains, tower and aligner too."""
    import torch
    from transformers import AutoModelForImageTextToText

    policy, reference = (AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32) for _ in range(2))
    processor = vision.processor(model, name)
    pairs = [json.loads(line) for line in rows.read_text().splitlines()]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=RATE, betas=(0.9, 0.999), weight_decay=0.0)
    lines = []
    for step in range(STEPS):
        found: list[tuple[Any, ...]] = []
        for pair in pairs[step * GLOBAL : (step + 1) * GLOBAL]:
            answers = pair["messages"][1]["content"], pair["rejected_response"]
            inputs = [_inputs(processor, pair, answer) for answer in answers]
            with torch.no_grad():
                known = [_log_probability(reference, *each) for each in inputs]
            found.append((*(_log_probability(policy, *each) for each in inputs), *known))
        chosen, rejected, known_chosen, known_rejected = map(torch.stack, zip(*found, strict=True))
        better, worse = BETA * (chosen - known_chosen), BETA * (rejected - known_rejected)
        loss = -torch.nn.functional.logsigmoid(better - worse).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        values = (loss, better.mean(), worse.mean(), chosen.mean(), rejected.mean())
        lines.append(dict(zip(COMPARED, map(float, values), strict=True)))
    return lines


def _inputs(processor: Any, pair: dict[str, Any], answer: str) -> tuple[dict[str, Any], int, int]:
    """The model's inputs, and the first token of the answer and the one behind its end."""
    from PIL import Image

    text = pair["messages"][0]["content"].replace("<image>", "")
    content = [*({"type": "image"} for _ in pair["images"]), {"type": "text", "text": text}]
    turns = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
    images = [Image.open(path).convert("RGB") for path in pair["images"]] or None
    prompt, whole = (
        processor(
            text=[processor.apply_chat_template(each, tokenize=False, add_generation_prompt=len(each) == 1)],
            images=images,
            return_tensors="pt",
        )
        for each in (turns[:1], turns)
    )
    ids = whole["input_ids"][0].tolist()
    end = len(ids) - ids[::-1].index(processor.tokenizer.eos_token_id)
    return dict(whole), prompt["input_ids"].shape[1], end


def _log_probability(model: Any, inputs: dict[str, Any], first: int, end: int) -> Any:
    """Of the answer, the sum over its tokens."""
    import torch

    logits = model(**inputs).logits[0, first - 1 : end - 1]
    labels = inputs["input_ids"][0, first:end]
    return -torch.nn.functional.cross_entropy(logits, labels, reduction="sum")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_steps_on_pairs_with_images_are_those_of_transformers(layout, model, rows, truth, tmp_path):
    ranks, settings = LAYOUTS[layout]
    free = {"freeze_vit": False, "freeze_aligner": False, "max_length": 512, "train_iters": STEPS, "beta": BETA}
    run = train(model, rows, tmp_path / "run", ranks=ranks, **{**free, **settings})
    for name in COMPARED:
        assert run.column(name) == pytest.approx([line[name] for line in truth], abs=ABSOLUTE), name
    assert abs(run.column("rewards/chosen")[-1]) > 1e-3, "a policy that does not move proves nothing"


def test_a_tower_that_trains_beside_adapters_is_compared_with_the_one_of_load(model, rows, tmp_path):
    """Before the first step policy and reference are the same, so that no answer has a reward."""
    given = {"max_length": 512, "train_iters": 1, "beta": BETA}
    free = {"freeze_vit": False, "freeze_aligner": False, "lr": 1e-2}
    train(model, rows, tmp_path / "before", **given, **free)
    run = train(
        model, rows, tmp_path / "run", train_type="lora_llm", load=str(tmp_path / "before"), finetune=True, **given
    )
    assert run.column("rewards/chosen") == pytest.approx([0.0], abs=1e-5)


def test_pre_training_on_texts_with_images_has_the_loss_of_transformers(name, model, tmp_path):
    """The loss of the first step is the mean over all tokens but those that stand for an image."""
    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText

    from tests.support.ranks import tiny_run

    files = [vision.save(tmp_path / f"{number}.png", 24 + 8 * number, 32, number) for number in range(4)]
    texts = [f"<image>A picture, number {number}." for number in range(4)]
    lines = [json.dumps({"text": text, "images": [str(file)]}) for text, file in zip(texts, files, strict=True)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines) + "\n")
    given = tiny_run.arguments(model, tmp_path / "texts.jsonl", tmp_path / "run", max_length=512, train_iters=1)
    run = tiny_run.train(given, task="pt")
    assert run.exit_code == 0, run.message
    theirs = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    processor = vision.processor(model, name)
    place = "<IMG_CONTEXT>\n" if vision.is_cut(name) else "<|vision_start|><|image_pad|><|vision_end|>"
    total, count = 0.0, 0
    for text, file in zip(texts, files, strict=True):
        marked = text.replace("<image>", place) + "<|im_end|>"
        pictures = [Image.open(file).convert("RGB")]
        inputs = processor(text=[marked], images=pictures, return_tensors="pt")
        labels = inputs["input_ids"][0, 1:].clone()
        labels[: processor(text=[place], images=pictures, return_tensors="pt")["input_ids"].shape[1] - 1] = -100
        with torch.no_grad():
            logits = theirs(**inputs).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
        count += int((labels >= 0).sum())
    assert run.column("lm loss") == pytest.approx([total / count], abs=1e-4)
