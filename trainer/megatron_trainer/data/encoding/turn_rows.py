"""Splits conversations so that every trained answer is the last one of its own row: split_turns.

A template may print an answer differently when further turns follow (without its thought, without the system prompt
before it). In its own row each answer is printed as the model generates it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from megatron_trainer.data.conversation.form import may_join
from megatron_trainer.data.encoding.loss_span import trained_messages
from megatron_trainer.data.values import Conversation, Message

NOTE = "an answer of a longer conversation, as the last one of a separate row (split_turns)"


def num_rows(messages: Sequence[Message], loss_scale: str) -> int:
    """Number of rows for a conversation, at least one: even if nothing is trained, which the encoder reports."""
    return max(1, len(_ends(messages, loss_scale)))


def with_one_answer(conversation: Conversation, number: int, loss_scale: str) -> Conversation:
    """The conversation up to its trained answer with this index, with no other answer trained."""
    ends = _ends(conversation.messages, loss_scale)
    if not ends or ends == [len(conversation.messages) - 1]:
        return conversation
    kept = conversation.messages[: ends[number] + 1]
    first = _start(kept)
    messages = [
        replace(message, loss=False) if message.role == "assistant" and place < first else message
        for place, message in enumerate(kept)
    ]
    return replace(conversation, messages=tuple(messages), notes=(*conversation.notes, NOTE))


def _ends(messages: Sequence[Message], loss_scale: str) -> list[int]:
    """The indices of trained answers; for consecutive ones that templates may print as one, the index of the last."""
    trained = sorted(trained_messages(messages, loss_scale))
    return [
        place
        for place in trained
        if place + 1 == len(messages) or place + 1 not in trained or not may_join(messages[place], messages[place + 1])
    ]


def _start(messages: Sequence[Message]) -> int:
    """The start of the last answer, including the preceding messages that are printed as one with it."""
    place = len(messages) - 1
    while place > 0 and may_join(messages[place - 1], messages[place]):
        place -= 1
    return place
