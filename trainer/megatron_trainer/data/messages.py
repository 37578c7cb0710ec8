"""The turns of a conversation, in whichever dialect they are written. Knows nothing of other columns.

Dialects: {role, content} | {from, value} | {human, assistant} pairs; tool calls as their own turns
({"role": "tool_call", "content": "{...}"}) or inside an assistant turn (OpenAI's `tool_calls`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from megatron_trainer.data.values import Message, RowError

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool_call": "tool_call",
    "function_call": "tool_call",
    "tool": "tool",
    "tool_response": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function": "tool",
}
_PAIR_KEYS = {"user": ("human", "user"), "assistant": ("assistant", "gpt", "bot")}
_PASSED_ON = ("reasoning_content", "name", "tool_call_id")


def parse_messages(value: object) -> tuple[Message, ...]:
    """The turns with canonical roles (system, user, assistant, tool), equal neighbours joined.

    Raises RowError when the value is no list of turns, or a turn is damaged.
    """
    turns = _as_list(value)
    messages: list[Message] = []
    for number, turn in enumerate(turns, start=1):
        for message in _parse_turn(turn, number):
            _append(messages, message)
    if not messages:
        raise RowError("no messages")
    return tuple(messages)


def text_of(value: object, name: str) -> str:
    """The value as text: a string, a number, or a list of text parts. None is the empty text.

    Raises RowError for anything else.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, Sequence):
        return "".join(_part_text(part, name) for part in value)
    raise RowError("a field is not text", f"{name} is of type {type(value).__name__}")


def parse_json(value: object, name: str) -> object:
    """The value itself, or what its JSON text says.

    Raises RowError when a string is not JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as err:
        raise RowError("a field is not JSON", f"{name}: {err}") from err


def _as_list(value: object) -> Sequence[object]:
    value = parse_json(value, "messages")
    if isinstance(value, Mapping) and value and all(isinstance(part, list) for part in value.values()):
        return _rows_of_columns(value)
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise RowError("messages is not a list", f"it is of type {type(value).__name__}")
    return value


def _rows_of_columns(columns: Mapping[str, list[object]]) -> list[object]:
    """A list of structs as parquet readers may give it: one list for each field."""
    if len({len(values) for values in columns.values()}) != 1:
        raise RowError("messages is not a list", "its fields have different lengths")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _parse_turn(turn: object, number: int) -> list[Message]:
    if not isinstance(turn, Mapping):
        raise RowError("a message is not an object", f"message {number} is of type {type(turn).__name__}")
    role = turn.get("role", turn.get("from"))
    if role is None:
        return _parse_pair(turn, number)
    canonical = ROLES.get(role.lower()) if isinstance(role, str) else None
    if canonical is None:
        raise RowError("unknown role", f"message {number}: {role!r}")
    content = turn.get("content", turn.get("value"))
    loss = _loss(turn, number)
    if canonical == "tool_call":
        return [Message(role="assistant", content="", loss=loss, extra={"tool_calls": _tool_calls(content)})]
    return [Message(role=canonical, content=text_of(content, f"message {number}"), loss=loss, extra=_extra(turn))]


def _parse_pair(turn: Mapping[str, object], number: int) -> list[Message]:
    found = {role: key for role, keys in _PAIR_KEYS.items() for key in keys if turn.get(key) is not None}
    if "assistant" not in found:
        raise RowError("a message has no role", f"message {number} has {_names(turn)}")
    loss = _loss(turn, number)
    return [
        Message(role=role, content=text_of(turn[key], key), loss=loss if role == "assistant" else None)
        for role, key in found.items()
    ]


def _names(turn: Mapping[str, object]) -> str:
    return ", ".join(sorted(str(key) for key in turn)[:6]) or "no fields"


def _loss(turn: Mapping[str, object], number: int) -> bool | None:
    loss = turn.get("loss")
    if loss is None or isinstance(loss, bool):
        return loss
    if loss in (0, 1):
        return bool(loss)
    raise RowError("loss of a message is neither true nor false", f"message {number}: {loss!r}")


def _extra(turn: Mapping[str, object]) -> dict[str, object]:
    extra = {key: turn[key] for key in _PASSED_ON if turn.get(key) is not None}
    if turn.get("tool_calls"):
        extra["tool_calls"] = _tool_calls(turn["tool_calls"])
    return extra


def _tool_calls(value: object) -> list[dict[str, object]]:
    """Calls as chat templates expect them: {type: function, function: {name, arguments: object}}."""
    value = parse_json(value, "tool call")
    calls = value if isinstance(value, list) else [value]
    return [_tool_call(call) for call in calls]


def _tool_call(call: object) -> dict[str, object]:
    if not isinstance(call, Mapping):
        raise RowError("a tool call is not an object", f"it is of type {type(call).__name__}")
    function = call.get("function", call)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowError("a tool call has no name")
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        arguments = parse_json(arguments, "arguments of a tool call") if arguments.strip() else {}
    rest = {key: value for key, value in call.items() if key == "id" and value is not None}
    return {**rest, "type": "function", "function": {"name": function["name"], "arguments": arguments or {}}}


def _part_text(part: object, name: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str) and part.get("type", "text") == "text":
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise RowError("only text can be trained on", f"{name} holds a part of type {kind}")


def _append(messages: list[Message], message: Message) -> None:
    """Add a turn; two turns of the user or of the assistant in a row become one."""
    if messages and messages[-1].role == message.role and message.role in ("user", "assistant"):
        messages[-1] = _join(messages[-1], message)
    else:
        messages.append(message)


def _join(first: Message, second: Message) -> Message:
    if first.loss != second.loss:
        raise RowError("neighbouring assistant messages differ in loss", "give both the same, or join them")
    calls = [*_calls_of(first), *_calls_of(second)]
    extra = {**first.extra, **second.extra, **({"tool_calls": calls} if calls else {})}
    return replace(first, content=first.content + second.content, extra=extra)


def _calls_of(message: Message) -> list[object]:
    calls = message.extra.get("tool_calls", [])
    return calls if isinstance(calls, list) else []
