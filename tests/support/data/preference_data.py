"""Pairs of answers for tests: rows of a file, and what TRL's trainers take of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.ranks import tiny_run

WORSE = ("I do not know.", "Maybe.", "Perhaps it is ten, or eleven; who can say?", "No.", "Ask me later, please.")


def rows(count: int = 18) -> list[dict[str, Any]]:
    """Conversations with a better and a worse answer."""
    made = []
    for index in range(count):
        question, answer = tiny_run.QUESTIONS[index % len(tiny_run.QUESTIONS)]
        turns = [{"role": "user", "content": f"{question} ({index})"}, {"role": "assistant", "content": answer}]
        made.append({"messages": turns, "rejected_response": WORSE[index % len(WORSE)]})
    return made


def write(path: Path, count: int = 18) -> Path:
    """A JSON lines file of the rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(count)))
    return path


def single_rows(count: int = 18) -> list[dict[str, Any]]:
    """The rows of single answers, good and bad ones in turn, each with its label."""
    made = []
    for index, row in enumerate(rows(count)):
        is_good = index % 2 == 0
        answer = row["messages"][1]["content"] if is_good else row["rejected_response"]
        turns = [row["messages"][0], {"role": "assistant", "content": answer}]
        made.append({"messages": turns, "label": is_good})
    return made


def write_singles(path: Path, count: int = 18) -> Path:
    """A JSON lines file of the rows of single answers."""
    path.write_text("".join(json.dumps(row) + "\n" for row in single_rows(count)))
    return path


def single_tokens(count: int, tokenizer: Any) -> list[dict[str, Any]]:
    """The rows of single answers as TRL's KTO has them once they are tokenized."""
    made = []
    for index, row in enumerate(tokens(count, tokenizer)):
        is_good = index % 2 == 0
        answer = row["chosen_ids" if is_good else "rejected_ids"]
        made.append({"prompt_ids": row["prompt_ids"], "completion_ids": answer, "label": is_good})
    return made


def tokens(count: int, tokenizer: Any) -> list[dict[str, list[int]]]:
    """The rows as TRL has them once they are tokenized: prompt, and answers up to the token that ends them."""
    made = []
    for row in rows(count):
        prompt = row["messages"][:1]
        start = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True)["input_ids"]
        found = {"prompt_ids": start}
        answers = {"chosen": row["messages"][1]["content"], "rejected": row["rejected_response"]}
        for name, answer in answers.items():
            turns = [*prompt, {"role": "assistant", "content": answer}]
            ids = tokenizer.apply_chat_template(turns, tokenize=True)["input_ids"]
            end = len(ids) - ids[::-1].index(tokenizer.eos_token_id)
            found[f"{name}_ids"] = ids[len(start) : end]
        made.append(found)
    return made
