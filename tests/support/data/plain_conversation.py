"""The conversation that the rows of many tests hold, in one way of writing it or another."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_trainer.data.conversation.formats import Recognition
from megatron_trainer.data.values import Message

PLAIN = Recognition()
"""How rows are recognized where no task asks for more."""
ASKED = [("user", "2+2?"), ("assistant", "4")]


def chat() -> list[dict[str, str]]:
    """The conversation as messages of a row."""
    return [{"role": role, "content": content} for role, content in ASKED]


def turns(messages: Sequence[Message]) -> list[tuple[str, str]]:
    """Role and text of each message."""
    return [(message.role, message.content) for message in messages]
