"""Whether everything that a row says stands in the text that a template made of it.

Each turn of the assistant must hold its content, thought and calls; the text between two of them the messages between;
the text outside of all of them the tools. Templates may trim a text, quote it as JSON, or write JSON in words of their
own: then each of its leaves must be there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from megatron_trainer.data.conversation.rendering import Loss, Tools, Turn
from megatron_trainer.data.values import Message

THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
_ENDED_THOUGHT = re.compile(r"\s*(.*?)</think>\s*", re.DOTALL)
_KINDS = {"system": "the system prompt", "user": "a question", "tool": "a tool result", "assistant": "an answer"}
SCHEMAS = ("input_schema", "inputSchema")
"""Names that a tool's parameters have in dialects other than OpenAI's."""
_USED = "\0"
_SHORT = 24
"""Characters of a text that could stand by chance in what a template always prints."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a message: its kind in words, and its text or value."""

    kind: str
    value: object


def split_thought(message: Message) -> tuple[str, str]:
    """(thought, answer) of an assistant turn; the thought has a field of its own or stands before the answer.

    After other words it is none: no model starts to think in the middle of an answer, so it is one of its words.
    """
    if message.thought or message.role != "assistant" or "</think>" not in message.content:
        return message.thought, message.content
    found = THOUGHT.match(message.content) or _ENDED_THOUGHT.match(message.content)
    assert found is not None
    if "<think>" in found[1]:
        return "", message.content
    return found[1].strip(), message.content[found.end() :]


def parts_of(message: Message) -> Iterator[Part]:
    """Everything that a message says."""
    thought, content = split_thought(message)
    if thought:
        yield Part(kind="a thought", value=thought)
    if content.strip():
        yield Part(
            kind="words beside a tool call" if message.calls else _KINDS.get(message.role, "a message"), value=content
        )
    for call in message.calls:
        yield Part(kind="a tool call", value=call["function"]["name"])
        if call["function"]["arguments"]:
            yield Part(kind="a tool call", value=call["function"]["arguments"])


def lost(
    text: str,
    turns: Sequence[Turn],
    messages: Sequence[Message],
    tools: Tools,
    *,
    fixed: Callable[[str], str] = str,
    without_thought: Container[int] = (),
    known: Container[int] = (),
) -> tuple[Loss, ...]:
    """The parts of a row that the text lacks.

    turns: where each assistant message lies, in order. fixed: takes out of a piece of text what the template always
    prints, so that a short word of the row is not mistaken for it. without_thought: messages that may lack theirs.
    known: messages that are in the text for certain.
    """
    regions = _regions(text, turns, len(messages), fixed)
    missing = []
    for place, message in enumerate(messages):
        region = regions[place]
        if place in known or (_is_plain(message) and region.take(message.content)):
            continue
        for part in sorted(parts_of(message), key=lambda part: -len(str(part.value))):
            if part.kind == "a thought" and place in without_thought:
                continue
            if not region.take(part.value):
                missing.append(Loss(kind=part.kind, detail=f"message {place + 1}: {str(part.value)[:60]}"))
    if tools:
        outside = _Region("".join(_between(text, turns)), fixed)
        parts = (part for tool in tools for part in _tool(tool))
        missing += [Loss(kind="a tool", detail=part[:60]) for part in parts if not outside.has(part)]
    return tuple(missing)


def _is_plain(message: Message) -> bool:
    """Whether the message says nothing but its content."""
    return bool(message.content) and not (message.thought or message.extra or "</think>" in message.content)


def prints_python(text: str, messages: Sequence[Message]) -> bool:
    """Whether arguments stand in the text as Python writes an object, which no model shall learn."""
    return any(
        repr(dict(arguments)) in text and json.dumps(arguments, ensure_ascii=False) != repr(dict(arguments))
        for message in messages
        for call in message.calls
        if isinstance(arguments := call["function"]["arguments"], Mapping) and arguments
    )


class _Region:
    """A piece of the text in which parts are looked for; what was found is used up.

    fixed: as of lost(). Only short texts are looked for without what it takes out: a row may hold such marks as well.
    """

    def __init__(self, text: str, fixed: Callable[[str], str] = str) -> None:
        self._text = text
        self._fixed = fixed

    @cached_property
    def _own(self) -> str:
        return self._fixed(self._text)

    def has(self, value: object) -> bool:
        return any(self._holds(form) for form in _forms(value)) or self._has_leaves(value)

    def take(self, value: object) -> bool:
        for form in _forms(value):
            if self._holds(form):
                self._use_up(form)
                return True
        return self._has_leaves(value)

    def _holds(self, form: str) -> bool:
        return form in self._text and (len(form) >= _SHORT or self._fixed is str or self._fixed(form) in self._own)

    def _use_up(self, form: str) -> None:
        if len(form) >= _SHORT or self._fixed is str:
            self._text = self._text.replace(form, _USED, 1)
        if "_own" in vars(self):
            self._own = self._own.replace(self._fixed(form), _USED, 1)

    def _has_leaves(self, value: object) -> bool:
        structure = _structure(value)
        return structure is not None and all(
            any(self._holds(form) for form in _forms(leaf)) for leaf in _leaves(structure)
        )


def _regions(text: str, turns: Sequence[Turn], count: int, fixed: Callable[[str], str]) -> list[_Region]:
    """Where each message must be: an assistant's in its turn, all others between two turns."""
    between = [_Region(piece, fixed) for piece in _between(text, turns)]
    own = {turn.message: _Region(text[turn.start : turn.end]) for turn in turns}
    regions, passed = [], 0
    for place in range(count):
        regions.append(own.get(place, between[passed]))
        passed += place in own
    return regions


def _between(text: str, turns: Sequence[Turn]) -> list[str]:
    edges = [0, *(edge for turn in turns for edge in (turn.start, turn.end)), len(text)]
    return [text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]


def _tool(tool: Mapping[str, object]) -> Iterator[str]:
    """What must be said of a tool: its name, what it does, and the names of its parameters."""
    function = tool.get("function", tool)
    if not isinstance(function, Mapping):
        return
    yield from (str(function[key]) for key in ("name", "description") if function.get(key))
    parameters = next((function[name] for name in ("parameters", *SCHEMAS) if name in function), None)
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    if isinstance(properties, Mapping):
        yield from map(str, properties)


def _forms(value: object) -> Iterator[str]:
    """The ways in which templates print a text or a number."""
    match value:
        case str():
            text = value.strip()
            yield text
            yield json.dumps(text, ensure_ascii=False)[1:-1]
            yield json.dumps(text)[1:-1]
            lines = "\n".join(line.strip() for line in text.splitlines())
            if lines != text:
                yield lines
        case bool():
            yield from (json.dumps(value), str(value))
        case int() | float():
            yield from (json.dumps(value), str(value))
        case None:
            yield ""
        case _:
            yield json.dumps(value, ensure_ascii=False)


def _structure(value: object) -> Mapping[str, object] | Sequence[object] | None:
    """The object or list that the value is, or that its text stands for."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, Mapping | list | tuple) and value else None


def _leaves(value: object) -> Iterator[object]:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield str(key)
            yield from _leaves(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _leaves(entry)
    else:
        yield value
