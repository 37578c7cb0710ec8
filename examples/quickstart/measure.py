"""Measures a model before and after training, apart from the trainer: with transformers and peft."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from answer import ask
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

Message = dict[str, str]
ROWS_AT_ONCE = 8
SHOWN = "`sys.getdefaultencoding`"
"""The held-out question that is asked; without it the first one is."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Held-out loss in nats per token of the answers, and the answer to the shown question."""

    loss: float
    answer: str


@dataclass(frozen=True, kw_only=True)
class Result:
    """The model without and with the adapter, on the same rows."""

    num_rows: int
    question: str
    expected: str
    before: Measured
    after: Measured


def measure(data: Path, adapter: Path) -> Result:
    """Loads the base model once; `data` holds model/ and validation.jsonl."""
    disable_progress_bar()
    rows = [json.loads(line)["messages"] for line in (data / "validation.jsonl").read_text().splitlines()]
    question, expected = (message["content"] for message in choose(rows))
    tokenizer = AutoTokenizer.from_pretrained(data / "model")
    # Without instructions for bfloat16 a processor takes minutes for what float32 does in seconds.
    base = AutoModelForCausalLM.from_pretrained(data / "model", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter).eval()
    with model.disable_adapter():
        before = Measured(loss=mean_loss(model, tokenizer, rows), answer=ask(model, tokenizer, question))
    after = Measured(loss=mean_loss(model, tokenizer, rows), answer=ask(model, tokenizer, question))
    return Result(num_rows=len(rows), question=question, expected=expected, before=before, after=after)


def choose(rows: list[list[Message]]) -> list[Message]:
    """The row whose question is shown."""
    return next((row for row in rows if SHOWN in row[0]["content"]), rows[0])


@torch.no_grad()
def mean_loss(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[list[Message]]) -> float:
    """Mean loss in nats over the tokens of all answers, end of turn included."""
    loss_sum, num_tokens = 0.0, 0
    for start in range(0, len(rows), ROWS_AT_ONCE):
        encoded = [encode(tokenizer, messages) for messages in rows[start : start + ROWS_AT_ONCE]]
        length = max(len(tokens) for tokens, _ in encoded)
        tokens_BT = torch.tensor([tokens + [0] * (length - len(tokens)) for tokens, _ in encoded])
        labels_BT = torch.tensor([labels + [-100] * (length - len(labels)) for _, labels in encoded])
        logits_BTV = model(input_ids=tokens_BT).logits  # padding is at the end: a causal model does not see it
        is_target_BT = labels_BT[:, 1:] != -100
        logits, targets = logits_BTV[:, :-1][is_target_BT], labels_BT[:, 1:][is_target_BT]
        loss_sum += cross_entropy(logits.float(), targets, reduction="sum").item()
        num_tokens += len(targets)
    return loss_sum / num_tokens


def encode(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> tuple[list[int], list[int]]:
    """Token ids of a row, and the labels: -100 for all that is not the answer."""
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
    answer = tokenizer(messages[-1]["content"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    return prompt + answer, [-100] * len(prompt) + answer
