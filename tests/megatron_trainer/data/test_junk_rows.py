"""Rows of junk by fixed seeds: each is encoded or has a reason, and none ends the encoding."""

import json
import random

import pytest

from megatron_trainer.data.encoding.encode import Encoded, Encoder, EncodeSettings
from megatron_trainer.data.row import Record
from megatron_trainer.data.values import Rejection
from tests.support.models.text_models import chatml_tokenizer

JUNK = [
    None,
    True,
    0,
    -1.5,
    1e400,
    "",
    " ",
    "\x00",
    "\ud83d",
    "<|im_end|>",
    "x" * 5000,
    [],
    {},
    [[]],
    [None],
    {"": None},
]
KEYS = (
    *("messages", "conversations", "query", "response", "text", "instruction", "input", "output", "history", "system"),
    *("tools", "channel", "rejected_response", "rejected_messages", "images", "role", "content", "from", "value"),
    *("loss", "tool_calls", "name", "arguments", "function", "reasoning_content", "chosen", "rejected", "prompt"),
)
ROLES = ["user", "assistant", "system", "tool", "tool_call", "human", "gpt", "king", 3, None]


def junk(source, depth=0):
    kind = source.random()
    if depth > 3 or kind < 0.4:
        return source.choice(JUNK)
    if kind < 0.6:
        return [junk(source, depth + 1) for _ in range(source.randrange(4))]
    if kind < 0.75:
        turns = [
            {"role": source.choice(ROLES), "content": source.choice(["hi", junk(source, depth + 1)])} for _ in range(3)
        ]
        return turns + [{"role": "assistant", "content": "yes"}]
    return {source.choice(KEYS): junk(source, depth + 1) for _ in range(source.randrange(5))}


def junk_line(source):
    row = {source.choice(KEYS): junk(source) for _ in range(source.randrange(1, 6))}
    line = json.dumps(row).encode()
    if source.random() < 0.2:
        place = source.randrange(len(line))
        line = line[:place] + bytes([source.randrange(256)]) + line[place + 1 :]
    return line.replace(b"\n", b" ")


@pytest.mark.parametrize("count", [300, pytest.param(5000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("chat", [True, False], ids=["chat", "plain"])
def test_rows_of_junk_are_encoded_or_have_a_reason(count, chat):
    source = random.Random(count)
    records = [Record(n, "junk.jsonl", n + 1, junk_line(source)) for n in range(count)]
    settings = EncodeSettings(use_chat_template=chat, loss_scale="default" if chat else "all", max_length=2000)
    results = Encoder(chatml_tokenizer(), settings).encode(records)
    assert len(results) == count
    rejections = [result for result in results if isinstance(result, Rejection)]
    assert all(result.reason and result.location.file == "junk.jsonl" for result in rejections)
    kept = [result for result in results if isinstance(result, Encoded)]
    assert all(result.weights[0].any() and len(result.input_ids[0]) == len(result.weights[0]) for result in kept)
    assert 0 < len(kept) < count
    assert len({result.reason for result in rejections}) > 10
