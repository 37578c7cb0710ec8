"""Checks that a template's text contains everything in the row.

Each assistant turn must contain its content, thought and calls; the text between two of them the messages in between;
the text outside all of them the tools. Templates may trim a text, quote it as JSON, or format JSON differently: then
each of its leaves must be present.
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
"""Keys of a tool's parameters in dialects other than OpenAI's."""
_USED = "\0"
_SHORT = 24
"""Up to this length, a text may occur by chance in what a template always prints."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a message: a description of its kind, and its text or value."""

    kind: str
    value: object


def split_thought(message: Message) -> tuple[str, str]:
    """(thought, answer) of an assistant turn; the thought is a separate field or precedes the answer.

    After other text it is part of the answer: no model starts to think in the middle of an answer.
    """
    if message.thought or message.role != "assistant" or "</think>" not in message.content:
        return message.thought, message.content
    found = THOUGHT.match(message.content) or _ENDED_THOUGHT.match(message.content)
    assert found is not None
    if "<think>" in found[1]:
        return "", message.content
    return found[1].strip(), message.content[found.end() :]


def parts_of(message: Message) -> Iterator[Part]:
    """All parts of a message."""
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
    """The parts of a row that are missing from the text.

    turns: location of each assistant message, in order. fixed: removes from a piece of text what the template always
    prints, so that it is not mistaken for a short word of the row. without_thought: messages that may lack their
    thought. known: messages that are certainly in the text.
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
    """Whether the message has nothing but content."""
    return bool(message.content) and not (message.thought or message.extra or "</think>" in message.content)


def prints_python(text: str, messages: Sequence[Message]) -> bool:
    """Whether arguments are printed as a Python object, which a model must not learn."""
    return any(
        repr(dict(arguments)) in text and json.dumps(arguments, ensure_ascii=False) != repr(dict(arguments))
        for message in messages
        for call in message.calls
        if isinstance(arguments := call["function"]["arguments"], Mapping) and arguments
    )


class _Region:
    """A piece of the text that is searched for parts; what was found is consumed.

    fixed: as in lost(). Only short texts are searched without what it removes: a row may contain such marks as well.
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
    """The region of each message: an assistant's in its turn, all others between two turns."""
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
    """The required parts of a tool: its name, description, and parameter names."""
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
    """The object or list that the value is or that its text encodes."""
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
