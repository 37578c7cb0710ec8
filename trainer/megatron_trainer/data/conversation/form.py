"""The forms in which a conversation is passed to a chat template, tried in order until one is printed completely.

Templates differ in what they accept: arguments of calls as objects or as text, empty or null content of a turn with
calls, call ids of nine characters, two consecutive turns of one role. A row is passed unchanged first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from megatron_trainer.data.values import Arguments, Message

Turns = list[dict[str, object]]

SEPARATOR = "\n\n"
"""Separator of two messages of one role that a template accepts only as one."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """One form. The first value of each field is the row's own form.

    joins: consecutive messages of one role are one turn. opens: an empty question before a conversation that the
    assistant starts. null_content: turns with calls and no text have null content. numbers_calls: calls get ids,
    and results the id and name of their call. text_arguments: arguments of calls as text.
    """

    joins: bool = False
    opens: bool = False
    null_content: bool = False
    numbers_calls: bool = False
    text_arguments: bool = False


def forms_for(messages: Sequence[Message]) -> Iterator[Form]:
    """The forms that are distinct for this conversation."""
    calls = any(message.calls for message in messages)
    neighbors = any(may_join(first, second) for first, second in zip(messages, messages[1:], strict=False))
    speakers = [message.role for message in messages if message.role != "system"]
    answers_first = speakers[:1] == ["assistant"]
    wordless = any(message.calls and not message.content for message in messages)
    tools = calls or "tool" in speakers
    choices = ((False, True) if varies else (False,) for varies in (neighbors, answers_first, wordless, tools, calls))
    for joins, opens, null_content, numbers_calls, text_arguments in product(*choices):
        yield Form(
            joins=joins,
            opens=opens,
            null_content=null_content,
            numbers_calls=numbers_calls,
            text_arguments=text_arguments,
        )


def messages_of(given: Sequence[Message], form: Form) -> tuple[list[Message], list[int]]:
    """The messages as the template takes them, and for each which of those given it is, or -1.

    Consecutive ones are joined, and an empty question opens the conversation, where the form says so.
    """
    messages, origins = joined(given) if form.joins else (list(given), list(range(len(given))))
    if form.opens or all(message.role == "assistant" for message in messages):
        place = int(messages[0].role == "system")
        messages.insert(place, Message(role="user", content=""))
        origins.insert(place, -1)
    return messages, origins


def joined(messages: Sequence[Message]) -> tuple[list[Message], list[int]]:
    """The messages with consecutive ones of a role joined, and for each the last message that it contains."""
    result: list[Message] = []
    origins: list[int] = []
    for place, message in enumerate(messages):
        if result and may_join(result[-1], message):
            result[-1] = join(result[-1], message)
            origins[-1] = place
        else:
            result.append(message)
            origins.append(place)
    return result, origins


def join(first: Message, second: Message) -> Message:
    """Two consecutive messages of one role as one, separated by a blank line."""
    calls = [*first.calls, *second.calls]
    return replace(
        first,
        content=SEPARATOR.join(text for text in (first.content, second.content) if text),
        thought=SEPARATOR.join(text for text in (first.thought, second.thought) if text),
        extra={**first.extra, **second.extra, **({"tool_calls": calls} if calls else {})},
    )


@dataclass(frozen=True, kw_only=True)
class Habits:
    """Features of a template. thought_key: the field from which it reads thoughts; roles: less common ones."""

    thought_key: str | None = None
    roles: frozenset[str] = frozenset()


def turns_of(messages: Sequence[Message], form: Form, habits: Habits) -> Turns:
    """The conversation in the form that a chat template accepts."""
    turns = [_turn(message, form, habits) for message in messages]
    return _numbered(turns) if form.numbers_calls else turns


def may_join(first: Message, second: Message) -> bool:
    """Whether two consecutive messages may be one turn: same role, both trained or neither, and wholly so."""
    if first.given or second.given:
        return False
    return first.role == second.role and first.role in ("system", "user", "assistant") and first.loss == second.loss


def _turn(message: Message, form: Form, habits: Habits) -> dict[str, object]:
    role = message.alias if message.alias in habits.roles else message.role
    turn: dict[str, object] = {"role": role, "content": message.content, **message.extra}
    if message.thought and habits.thought_key is not None:
        turn[habits.thought_key] = message.thought
    if message.calls:
        turn["tool_calls"] = [_call(call, is_text=form.text_arguments) for call in message.calls]
        if form.null_content and not message.content:
            turn["content"] = None
    return turn


def _call(call: Mapping[str, Any], *, is_text: bool) -> dict[str, Any]:
    function = call["function"]
    arguments = function["arguments"]
    if is_text:
        arguments = arguments.text if isinstance(arguments, Arguments) else json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


def _numbered(turns: Turns) -> Turns:
    """The turns with ids of nine characters on their calls, and each result with the id and name of its call."""
    waiting: list[dict[str, Any]] = []
    known: dict[object, dict[str, Any]] = {}
    result: Turns = []
    for turn in turns:
        calls: Any = turn.get("tool_calls")
        if calls:
            named = [{**call, "id": f"{len(known) + number:09d}"} for number, call in enumerate(calls)]
            known |= {call.get("id", new["id"]): new for call, new in zip(calls, named, strict=True)}
            waiting += named
            turn = {**turn, "tool_calls": named}
        elif turn["role"] == "tool":
            call = known.get(turn.get("tool_call_id")) or (waiting[0] if waiting else None)
            if call is not None:
                waiting = [entry for entry in waiting if entry is not call]
                turn = {"name": call["function"]["name"], **turn, "tool_call_id": call["id"]}
        result.append(turn)
    return result
