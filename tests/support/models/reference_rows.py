"""Rows of a data file as transformers' own template renders them: the truth that whole runs are compared with."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase


def reference_rows(tokenizer: PreTrainedTokenizerBase, data: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Token ids and labels of each row; the template itself says which tokens are the assistant's."""
    rows = []
    for line in data.read_text().splitlines():
        rendered = tokenizer.apply_chat_template(
            json.loads(line)["messages"], return_dict=True, return_assistant_tokens_mask=True
        )
        ids, mask = torch.tensor(rendered["input_ids"]), torch.tensor(rendered["assistant_masks"])
        rows.append((ids, torch.where(mask == 1, ids, -100)))
    return rows
