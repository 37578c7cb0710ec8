"""Shows what the quickstart's training did, measured apart from the trainer: with transformers and peft.

Prints the loss on the held-out rows and the answer to one held-out question, both before and after training, and
where the run's files lie.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from answer import ask
from peft import PeftModel
from place import data_directory
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

Message = dict[str, str]
ROWS_AT_ONCE = 8


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Show what the quickstart's training did.")
    parser.add_argument("--data", type=Path, default=data_directory(), help="folder with model and validation.jsonl")
    parser.add_argument("--run", type=Path, help="folder of the run (default: quickstart in the data folder)")
    args = parser.parse_args()
    run: Path = args.run or args.data / "quickstart"
    if not (run / "adapter").is_dir():
        raise SystemExit(f"{run} holds no adapter: the training has not finished")
    disable_progress_bar()
    rows = [json.loads(line)["messages"] for line in (args.data / "validation.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(args.data / "model")
    base = AutoModelForCausalLM.from_pretrained(args.data / "model", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, run / "adapter").eval()
    with model.disable_adapter():
        before = mean_loss(model, tokenizer, rows), ask(model, tokenizer, rows[0][0]["content"])
    after = mean_loss(model, tokenizer, rows), ask(model, tokenizer, rows[0][0]["content"])
    print_result(rows, before, after)
    print_files(run)


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
        targets = labels_BT[:, 1:].flatten()
        loss_sum += cross_entropy(logits_BTV[:, :-1].flatten(0, 1), targets, reduction="sum").item()
        num_tokens += int((targets != -100).sum())
    return loss_sum / num_tokens


def encode(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> tuple[list[int], list[int]]:
    """Token ids of a row, and the labels: -100 for all that is not the answer."""
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
    answer = tokenizer(messages[-1]["content"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    return prompt + answer, [-100] * len(prompt) + answer


def print_result(rows: list[list[Message]], before: tuple[float, str], after: tuple[float, str]) -> None:
    """Losses and answers, side by side."""
    question, expected = rows[0]
    change = 100 * (after[0] / before[0] - 1)
    print(f"\nheld-out loss ({len(rows)} rows, measured with transformers and peft)")
    print(f"  before   {before[0]:.4f}")
    print(f"  after    {after[0]:.4f}   ({change:+.1f} %)")
    print(f"\n{question['content']}")
    print(f"  before   {before[1]}")
    print(f"  after    {after[1]}")
    print(f"  Python   {expected['content']}")


def print_files(run: Path) -> None:
    """Where the run's outputs lie."""
    newest = max(run.glob("iter_*"), default=None)
    named = {"checkpoint": newest, "adapter": run / "adapter", "report": run / "report.html"}
    print()
    for name, path in named.items():
        if path is not None and path.exists():
            print(f"{name:<10} {path}")


if __name__ == "__main__":
    main()
