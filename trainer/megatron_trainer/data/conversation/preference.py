"""Pairs of a chosen and a rejected answer, and answers with a label. Renders nothing."""

from __future__ import annotations

import math
from collections.abc import Callable

from megatron_trainer.data.conversation.columns import JUDGMENT, MESSAGES, QUERY, REJECTED, Columns, Row
from megatron_trainer.data.conversation.messages import parse_messages, plain_value, text_of
from megatron_trainer.data.conversation.turn_columns import as_prompt, as_question, as_turns, history, pick, query
from megatron_trainer.data.values import Message, RowError

Turns = tuple[Message, ...]
Texts = Callable[[object], object]


def with_prompt(row: Columns, name: str) -> Turns:
    """Preference rows of {prompt, chosen, rejected} with answers, and possibly the prompt, as turns."""
    answer = parse_messages(row[name])
    if answer[0].role not in ("system", "user"):
        return (*as_prompt(_prompt(row)), *answer)
    said = [turn.content.strip() for turn in answer]
    if any(turn.content.strip() not in said for turn in _asked(row)):
        row.tell("the prompt inside the answers is used, not the one in the column")
    return answer


def _prompt(row: Row) -> Turns:
    """What the answers of a pair answer: messages that end with a question, or the columns of one."""
    listed = pick(row, MESSAGES, "messages")
    if listed is None:
        return (*history(row.get("history")), *_asked(row))
    given = parse_messages(listed)
    return () if given[-1].role == "assistant" else given


def _asked(row: Row) -> Turns:
    return as_question(row["prompt"] if "prompt" in row else query(row) if any(name in row for name in QUERY) else None)


def chosen_beside(row: Columns, listed: object, choose: Texts) -> Turns:
    """The chosen conversation of a row that has messages as well: they are its prompt, or repeat it."""
    given = parse_messages(listed)
    answer = as_turns(row["chosen"]) or (_answer(choose(row["chosen"]), "chosen"),)
    if any(turn.role == "user" for turn in answer):
        if given != answer:
            row.tell("the turns of chosen and rejected are used, not those of messages")
        return with_prompt(row, "chosen")
    if given[-1].role != "assistant":
        return (*as_prompt(given), *answer)
    if given[-1].content.strip() != answer[-1].content.strip():
        row.tell("the last answer of the messages is used, not that of chosen")
    return given


def rejected(row: Columns, chosen: Turns, choose: Texts) -> Turns:
    """The conversation with the rejected answer. choose: one of several texts.

    Raises RowError if there is none, or it is the chosen one.
    """
    name = next((name for name in REJECTED if name in row), None)
    if name is None:
        raise RowError("no rejected answer", "preference training needs rejected_response or rejected_messages")
    found = _rejected_turns(row, name, choose)
    if not any(message.role == "user" and message.content.strip() for message in found):
        found = _after_question(chosen, tuple(message for message in found if message.role != "system"))
    if chosen[0].role == "system" and found[0].role != "system":
        found = (chosen[0], *found)
    own_images = row.get("rejected_images")
    if own_images and own_images is not True:  # the place of those that were read (vision/rows.py)
        raise RowError("only text can be trained on", "the row has rejected_images")
    if found == chosen and not own_images:  # equal words about two images differ
        raise RowError("the rejected answer equals the chosen one")
    if [m.content for m in chosen if m.role == "user"] != [m.content for m in found if m.role == "user"]:
        row.tell("chosen and rejected answer different questions")
    return checked(found)


def _rejected_turns(row: Columns, name: str, choose: Texts) -> Turns:
    if name == "rejected_messages":
        return parse_messages(row[name])
    if as_turns(row[name]):
        return with_prompt(row, name)
    return (_answer(choose(row[name]), name),)


def _answer(value: object, name: str) -> Message:
    return Message(role="assistant", content=text_of(value, name))


def labeled(row: Columns, messages: Turns, choose: Texts) -> tuple[Turns, tuple[float, ...]]:
    """The conversation that the label refers to, and the label as a target: 1 for a desirable answer, else 0."""
    label = plain_value(pick(row, JUDGMENT, "label"))
    if label is None:
        raise RowError("no label", "kto needs label: true or false, or a rejected answer next to the chosen one")
    if label not in (True, False):
        raise RowError("the label is neither true nor false", repr(label))
    if is_paired(row):
        other = rejected(row, messages, choose)
        messages = messages if label else other
    return messages, (float(bool(label)),)


def margin(row: Row) -> float:
    """The least difference of the scores of a pair, 0 if the row has none."""
    value = plain_value(row.get("margin", 0.0))
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RowError("the margin is not a number", repr(value))
    return float(value)


def is_paired(row: Row) -> bool:
    """Whether the row has a rejected answer as well."""
    return any(row.get(name) is not None for name in REJECTED)


def is_labeled(row: Row) -> bool:
    """Whether the row says itself which of its answers is desirable."""
    return any(name in row for name in JUDGMENT)


def _after_question(chosen: Turns, answer: Turns) -> Turns:
    """Rejected turns after all chosen ones up to the last that is not the assistant's; with tools of their own, up to
    the last question.
    """
    has_question = any(message.role == "user" for message in chosen)
    if has_question and answer[:1] and answer[0].role == "tool":
        raise RowError("the rejected turns begin with a tool result", "add the turns before it, or a prompt")
    has_tools = any(message.role == "tool" for message in answer)
    ends = [m.role == "user" if has_tools else m.role != "assistant" for m in chosen]
    return (*chosen[: max((place for place, is_end in enumerate(ends) if is_end), default=-1) + 1], *answer)


def is_empty(message: Message) -> bool:
    """Whether this is an answer without words, calls or thoughts."""
    nothing = not (message.content.strip() or message.calls or message.thought.strip())
    return message.role == "assistant" and nothing


def checked(messages: Turns) -> Turns:
    """The messages. Raises RowError if none is an answer, or the last one is empty."""
    answers = [message for message in messages if message.role == "assistant"]
    if not answers:
        raise RowError(
            "the last turn is not the assistant's", f"it has role {messages[-1].role}, and so have all others"
        )
    if is_empty(answers[-1]):
        raise RowError("empty response")
    return messages
