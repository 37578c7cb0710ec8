"""Steps of a classifier in plain transformers, torch and peft, which runs of the trainer are compared with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

STEPS, GLOBAL, RATE = 5, 4, 1e-3
TEXTS = ("the river is high", "a short text", "count to three please", "water", "is the mill open today or tomorrow?")
ADAM: dict[str, Any] = {
    "adam_beta1": 0.9,
    "adam_beta2": 0.95,
    "adam_eps": 1e-8,
    "weight_decay": 0.0,
    "clip_grad": 0.0,
    "lr": RATE,
    "lr_decay_style": "constant",
    "lr_warmup_fraction": 0.0,
    "train_iters": STEPS,
    "global_batch_size": GLOBAL,
    "dataloader_type": "single",
    "dataset_shuffle": False,
}
LABELS: dict[str, Any] = {
    "single_label_classification": lambda number: number % 3,
    "multi_label_classification": lambda number: [float(number % 2), float(number % 3 == 0), 1.0],
    "regression": lambda number: [number / 7, -1.5, 0.25 * number],
}


def write(path: Path, problem: str) -> Path:
    """Rows of one question each, as many as all steps read."""
    rows = [
        {
            "messages": [{"role": "user", "content": f"{TEXTS[number % len(TEXTS)]} {number}"}],
            "label": LABELS[problem](number),
        }
        for number in range(STEPS * GLOBAL)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_adapter(classifier: Path, directory: Path) -> Path:
    """An adapter of peft on the classifier, with random halves, that holds the score layer whole."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(classifier, dtype=torch.float32)
    settings = {"r": 4, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": ["o_proj", "down_proj"]}
    adapted = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", **settings))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.05, generator=generator)
    adapted.save_pretrained(directory)
    return directory


def train(classifier: Path, data: Path, problem: str, adapter: Path | None = None) -> tuple[list[float], Any]:
    """The loss of each step, and the trained model."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(classifier)
    model = AutoModelForSequenceClassification.from_pretrained(
        classifier, dtype=torch.float32, problem_type=problem, attn_implementation="eager"
    )
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter, is_trainable=True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    betas = (ADAM["adam_beta1"], ADAM["adam_beta2"])
    optimizer = torch.optim.AdamW(trained, lr=RATE, betas=betas, eps=ADAM["adam_eps"], weight_decay=0.0)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    losses = []
    for step in range(STEPS):
        batch = rows[step * GLOBAL : (step + 1) * GLOBAL]
        loss = torch.stack([_loss(model, tokenizer, row) for row in batch]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, model.eval()


def scores(model: Any, classifier: Path, data: Path) -> Any:
    """[rows, labels] of every row, one at a time."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(classifier)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    with torch.no_grad():
        return torch.cat([model(ids_of(tokenizer, row)).logits for row in rows])


def ids_of(tokenizer: Any, row: dict[str, Any]) -> Any:
    import torch

    text = tokenizer.apply_chat_template(row["messages"], tokenize=False, add_generation_prompt=True)
    return torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])


def _loss(model: Any, tokenizer: Any, row: dict[str, Any]) -> Any:
    import torch

    label = row["label"]
    labels = torch.tensor([label] if isinstance(label, list) else label).reshape(1, -1)
    labels = labels[0] if labels.shape[1] == 1 else labels
    return model(ids_of(tokenizer, row), labels=labels).loss
