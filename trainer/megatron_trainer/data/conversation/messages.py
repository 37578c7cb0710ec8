"""Parses the turns of a conversation in any dialect. Does not read other columns.

Dialects: {role, content} | {from, value} | {human, assistant} pairs; tool calls as separate turns
({"role": "tool_call", "content": "{...}"}) or inside an assistant turn (OpenAI's `tool_calls` and `function_call`).
"""

from __future__ import annotations

import ast
import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from megatron_trainer.data.conversation.conserve import SCHEMAS
from megatron_trainer.data.conversation.form import join
from megatron_trainer.data.values import Arguments, Message, RowError

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "chatbot": "assistant",
    "ai": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "tool_call": "tool_call",
    "tool_calls": "tool_call",
    "function_call": "tool_call",
    "tool": "tool",
    "tool_response": "tool",
    "tool_responses": "tool",
    "tool_result": "tool",
    "tool_results": "tool",
    "observation": "tool",
    "observations": "tool",
    "function_response": "tool",
    "function": "tool",
    "ipython": "tool",
}
"""Names of roles, in lower case and with _ for - and space."""
KNOWN_SPEAKERS = ("system", "user", "human", "assistant", "gpt")
ROLE_KEYS = ("role", "from")
CONTENT_KEYS = ("content", "value", "text")
THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking", "thought")
MASK_KEYS = ("loss", "weight", "train", "training")
"""Loss masks: this project's and the reference's, OpenAI's, axolotl's."""
PASSED_ON = ("name", "tool_call_id")
PAIR_KEYS = {
    "system": ("system",),
    "user": ("human", "user", "input", "query", "question", "prompt"),
    "assistant": ("assistant", "gpt", "bot", "output", "response", "answer"),
}
CALL_KEYS = ("tool_calls", "function_call")
ARGUMENT_KEYS = ("arguments", "parameters", "input", "args")
CALL_PART, RESULT_PART = "tool_use", "tool_result"
"""Parts of Anthropic's messages: a call in an answer, a result in the user's turn after it."""
_TEXT_PARTS = ("text", "input_text", "output_text")
_THOUGHT_PARTS = ("thinking", "reasoning")


def parse_messages(value: object) -> tuple[Message, ...]:
    """The turns with canonical roles (system, user, assistant, tool); a turn of calls joins the preceding answer.

    Raises RowError when the value is not a list of turns, or a turn is damaged.
    """
    messages: list[Message] = []
    for number, turn in enumerate(turns_in(value), start=1):
        for message, is_call in _parse_turn(turn, number):
            if is_call and messages and messages[-1].role == "assistant" and messages[-1].loss == message.loss:
                messages[-1] = join(messages[-1], message)
            else:
                messages.append(message)
    if not messages:
        raise RowError("no messages")
    return tuple(messages)


def parse_tools(value: object) -> tuple[Mapping[str, object], ...]:
    """The tools that a row declares, as functions. Raises RowError for invalid ones."""
    tools = parse_json(value, "tools")
    if not tools:
        return ()
    if isinstance(tools, Mapping):
        tools = [tools]
    if not isinstance(tools, list):
        raise RowError("tools is not a list", f"it is of type {type(tools).__name__}")
    as_json(tools, "tools")
    return tuple(_tool(parse_json(tool, "tools")) for tool in tools)


def _tool(tool: object) -> Mapping[str, object]:
    if not isinstance(tool, Mapping):
        raise RowError("a tool is not an object", f"it is of type {type(tool).__name__}")
    function = tool.get("function", tool)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowError("a tool has no name", f"it has {', '.join(map(str, tool)) or 'nothing'}")
    if "function" in tool:
        return tool
    names = {name: "parameters" for name in SCHEMAS if "parameters" not in tool}
    return {"type": "function", "function": {names.get(name, name): value for name, value in tool.items()}}


def text_of(value: object, name: str) -> str:
    """The value as text: a string, a finite number, or a list of text parts. None is the empty text.

    Raises RowError for anything else.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):  # columns of parquet files from programs that do not mark text
        return _decoded(value, name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise RowError("a field is not text", f"{name} is {value}")
        return str(value)
    if isinstance(value, Sequence):
        if len(value) > 1 and any(isinstance(part, str) for part in value):
            raise RowError("a column holds a list", f"{name} is {len(value)} texts; use one, or parts of type text")
        return "".join(_part_text(part, name) for part in value)
    raise RowError("a field is not text", f"{name} is of type {type(value).__name__}")


def _decoded(value: bytes, name: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as err:
        raise RowError("a field is not text", f"{name} holds bytes that are not UTF-8") from err


def is_missing(value: object) -> bool:
    """Whether there is no value: null, or NaN, as which pandas writes a missing one."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def plain_value(value: object) -> object:
    """The number, or true or false, whose text this is, as tables without types hold them; any other value itself."""
    text = value.strip().lower() if isinstance(value, str) else ""
    if text in ("true", "false"):
        return text == "true"
    if "_" in text:  # Python's numbers may have them
        return value
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            number = kind(text)
            return number if math.isfinite(number) else value
    return value


def parse_json(value: object, name: str) -> object:
    """The value itself, or its parsed JSON text; Python literals of lists and objects are accepted too.

    Raises RowError when a string is neither.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as err:
        if value.lstrip()[:1] in ("[", "{"):  # a table written by pandas holds Python literals
            try:
                return ast.literal_eval(value.strip())
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                pass
        raise RowError("a field is not JSON", f"{name}: {err}") from err


def as_json(value: object, name: str) -> str:
    """The value as JSON. Raises RowError for one that JSON does not have: tables hold bytes, times and decimals."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as err:
        raise RowError("a field has no form in JSON", f"{name}: {err}") from err


def turns_in(value: object) -> Sequence[object]:
    """The turns of a column, unparsed. Raises RowError when it is not a list."""
    value = parse_json(value, "messages")
    if isinstance(value, Mapping) and value and all(isinstance(part, list) for part in value.values()):
        return _rows_of_columns(value)
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise RowError("messages is not a list", f"it is of type {type(value).__name__}")
    return value


def _rows_of_columns(columns: Mapping[str, list[object]]) -> list[object]:
    """Converts a list of structs as parquet readers may return it: one list per field."""
    if len({len(values) for values in columns.values()}) != 1:
        raise RowError("messages is not a list", "its fields have different lengths")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _parse_turn(turn: object, number: int) -> Iterator[tuple[Message, bool]]:
    """The messages of a turn, each with whether it is a separate turn of calls."""
    if not isinstance(turn, Mapping):
        raise RowError("a message is not an object", f"message {number} is of type {type(turn).__name__}")
    turn = {key: value for key, value in turn.items() if not is_missing(value)}
    role = first(turn, ROLE_KEYS)
    if role is None:
        yield from ((message, False) for message in _parse_pair(turn, number))
        return
    name = plain_role(role) if isinstance(role, str) else ""
    canonical = ROLES.get(name)
    if canonical is None:
        raise RowError("unknown role", f"message {number}: {role!r}; known are {', '.join(KNOWN_SPEAKERS)}, tool, ...")
    content = first(turn, CONTENT_KEYS)
    if canonical == "tool_call":
        calls = _tool_calls(content if content is not None else turn.get("tool_calls"))
        thought = "\n\n".join(_thoughts(turn, number))
        call = Message(
            role="assistant", content="", loss=_loss(turn, number), extra={"tool_calls": calls}, thought=thought
        )
        yield call, True
    elif canonical == "assistant":
        yield _answer(turn, content, number), False
    elif canonical == "user" and _has_part(content, RESULT_PART):
        yield from ((message, False) for message in _with_results(content, number))
    elif canonical != "system" or content is not None:
        yield _other(turn, canonical, name, content, number), False


def _answer(turn: Mapping[str, object], content: object, number: int) -> Message:
    calls = [call for key in CALL_KEYS for call in _calls_in(turn, key)]
    if _has_part(content, CALL_PART):
        calls += [_tool_call(part) for part in content if _is_part(part, CALL_PART)]  # type: ignore[attr-defined]
        content = [part for part in content if not _is_part(part, CALL_PART)]  # type: ignore[attr-defined]
    thoughts = _thoughts(turn, number)
    spoken, inside = _without_thoughts(content)
    thought = "\n\n".join(dict.fromkeys(text for text in (*thoughts, *inside) if text.strip()))
    if content is None and not calls and not thought:
        raise RowError("an assistant turn is empty", f"message {number} has {_names(turn)}")
    extra = {key: turn[key] for key in PASSED_ON if turn.get(key) is not None}
    return Message(
        role="assistant",
        content=text_of(spoken, f"message {number}"),
        loss=_loss(turn, number),
        thought=thought,
        extra={**extra, **({"tool_calls": calls} if calls else {})},
    )


def _thoughts(turn: Mapping[str, object], number: int) -> list[str]:
    return [text_of(turn[key], f"message {number}") for key in THOUGHT_KEYS if turn.get(key)]


def _other(turn: Mapping[str, object], role: str, name: str, content: object, number: int) -> Message:
    if content is None and role == "user":
        raise RowError("a message has no content", f"message {number} has {_names(turn)}")
    if role == "tool" and (isinstance(content, Mapping | bool) or _is_data(content)):
        content = as_json(content, f"message {number}")
    return Message(
        role=role,
        content=text_of(content, f"message {number}"),
        loss=_loss(turn, number),
        alias=name if name != role else "",
        extra={key: turn[key] for key in PASSED_ON if turn.get(key) is not None},
    )


def _with_results(content: list[Any], number: int) -> Iterator[Message]:
    """The results of tools among the parts of a user's turn, as turns of their own, and what the user says beside."""
    for is_result, parts in groupby(content, key=lambda part: _is_part(part, RESULT_PART)):
        if not is_result:
            yield Message(role="user", content=text_of(list(parts), f"message {number}"))
            continue
        for part in parts:
            yield _other({"tool_call_id": part.get("tool_use_id")}, "tool", "tool", part.get("content"), number)


def _has_part(content: object, kind: str) -> bool:
    return isinstance(content, list) and any(_is_part(part, kind) for part in content)


def _is_part(part: object, kind: str) -> bool:
    return isinstance(part, Mapping) and part.get("type") == kind


def _is_data(content: object) -> bool:
    """Whether a tool's result is a list of anything but text parts."""
    return isinstance(content, list) and not all(
        isinstance(part, str) or (isinstance(part, Mapping) and "type" in part) for part in content
    )


def _without_thoughts(content: object) -> tuple[object, list[str]]:
    """Content parts without thoughts, and the thoughts separately."""
    if not isinstance(content, list):
        return content, []
    is_thought = [isinstance(part, Mapping) and part.get("type") in _THOUGHT_PARTS for part in content]
    thoughts = [
        str(next((part[key] for key in (part["type"], "text", "content") if part.get(key)), ""))
        for part, thinks in zip(content, is_thought, strict=True)
        if thinks
    ]
    return [part for part, thinks in zip(content, is_thought, strict=True) if not thinks], thoughts


def _parse_pair(turn: Mapping[str, object], number: int) -> Iterator[Message]:
    firsts = {role: next((key for key in keys if turn.get(key) is not None), None) for role, keys in PAIR_KEYS.items()}
    found = {role: key for role, key in firsts.items() if key is not None}
    if "assistant" not in found:
        raise RowError("a message has no role", f"message {number} has {_names(turn)}")
    loss = _loss(turn, number)
    for role, key in found.items():
        yield Message(role=role, content=text_of(turn[key], key), loss=loss if role == "assistant" else None)


def plain_role(role: str) -> str:
    """The name of a role in the spelling of ROLES."""
    return role.strip().lower().replace("-", "_").replace(" ", "_")


def first(turn: Mapping[str, object], keys: Sequence[str]) -> Any:  # noqa: ANN401 (any value of a row)
    """The value of the first of these keys that has one."""
    return next((turn[key] for key in keys if not is_missing(turn.get(key))), None)


def _names(turn: Mapping[str, object]) -> str:
    return ", ".join(sorted(str(key) for key in turn)[:6]) or "no fields"


def _loss(turn: Mapping[str, object], number: int) -> bool | float | None:
    """The loss mask of a turn, in any dialect; a number is a weight.

    Raises RowError for an invalid mask, or two masks that differ.
    """
    masks = {key: plain_value(turn[key]) for key in MASK_KEYS if turn.get(key) is not None}
    for key, mask in masks.items():
        if not isinstance(mask, bool | int | float) or not 0 <= mask < math.inf:
            raise RowError(f"{key} of a message is neither true nor false nor a weight", f"message {number}: {mask!r}")
    values = {float(mask) for mask in masks.values()}  # type: ignore[arg-type]  # numbers, as checked
    if len(values) > 1:
        raise RowError("a message has two loss masks that differ", f"message {number}: {', '.join(masks)}")
    if not values:
        return None
    [value] = values
    return bool(value) if value in (0, 1) else value


def _calls_in(turn: Mapping[str, object], key: str) -> list[dict[str, object]]:
    return _tool_calls(turn[key]) if turn.get(key) else []


def _tool_calls(value: object) -> list[dict[str, object]]:
    """Calls as chat templates expect them: {type: function, function: {name, arguments: object}}."""
    value = parse_json(value, "tool call")
    calls = value if isinstance(value, list) else [value]
    return [_tool_call(parse_json(call, "tool call")) for call in calls]


def _tool_call(call: object) -> dict[str, object]:
    if not isinstance(call, Mapping):
        raise RowError("a tool call is not an object", f"it is of type {type(call).__name__}")
    function = call.get("function", call)
    if isinstance(function, str):
        function = {**call, "name": function}
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowError("a tool call has no name")
    rest = {"id": str(call["id"])} if call.get("id") is not None else {}
    given = first(function, ARGUMENT_KEYS)
    arguments = _arguments(first(call, ARGUMENT_KEYS) if given in (None, "", {}) else given)
    return {**rest, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _arguments(given: object) -> object:
    """The arguments as an object that keeps its text."""
    if isinstance(given, str):
        parsed = parse_json(given, "arguments of a tool call") if given.strip() else {}
        return Arguments(parsed, given if given.strip() else "{}") if isinstance(parsed, Mapping) else parsed
    if isinstance(given, Mapping) or given is None:
        return Arguments(given or {}, as_json(given or {}, "a tool call"))
    as_json(given, "a tool call")
    return given


def _part_text(part: object, name: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str) and (part.get("type") or "text") in _TEXT_PARTS:
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise RowError("only text can be trained on", f"{name} holds a part of type {kind}")


def with_thought(message: Message, thought: str) -> Message:
    """The message with this thought if it has none."""
    return message if message.thought or not thought.strip() else replace(message, thought=thought)
