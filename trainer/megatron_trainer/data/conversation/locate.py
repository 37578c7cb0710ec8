"""Locates the assistant's turns in a text rendered by a chat template.

The turns are found by rendering the conversation again with different answers: the difference between the two texts is
the turn. (Rendering each prefix of the conversation fails for templates that render a turn differently once another
follows, such as those that drop earlier thoughts.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from megatron_trainer.data.conversation.form import Turns
from megatron_trainer.data.conversation.rendering import Tools
from megatron_trainer.data.conversation.stop import Stops
from megatron_trainer.data.values import RowError

_OPEN, _CLOSE = "\ue0f1", "\ue0f2"  # private-use characters: in no template, and in hardly any text
_STAND_IN = re.compile(f"{_OPEN}[0-9]+{_CLOSE}")
_OPENED_THOUGHT = re.compile(r"\s*(<think>\s*(</think>\s*)?)?")
_LONGEST_TOKEN = 100  # characters of an added token
_LATE_THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thought")

Spans = list[tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class Marks:
    """The fixed texts of a template around an assistant turn.

    header: text that starts an answer; part of the prompt at inference, so it is not trained. end_of_turn: text that
    closes every answer up to its last added token; trained, so that the model learns to stop.
    """

    header: str
    end_of_turn: str


class Render(Protocol):
    """Renders turns with a chat template; raises RowError if the template rejects them."""

    def __call__(
        self, turns: Turns, tools: Tools, variables: Mapping[str, object] | None = None, *, header: bool = False
    ) -> str:
        """The text; header: with the start of another answer."""
        ...


def stand_in(number: int) -> str:
    """A text that does not occur in any row."""
    return f"{_OPEN}{number}{_CLOSE}"


class Locator:
    """Finds answers in the texts of one template. stops: finds the possible ends of answers."""

    def __init__(self, render: Render, stops: Stops) -> None:
        self._render = render
        self._stops = stops
        self._tokens = stops.tokens
        self.marks = self._probe()

    def turns(self, text: str, turns: Turns, tools: Tools, places: list[int], variables: Mapping[str, object]) -> Spans:
        """Start and end of each answer, without its closing text.

        Raises RowError if the template omits an answer.
        """
        if _OPEN in text:
            raise RowError("the text holds a private-use character that the trainer needs", "U+E0F1")
        return (
            self._headed(text, turns, tools, places)
            or self._aligned(text, turns, tools, places, variables)
            or self._compared(text, turns, tools, places, variables)
        )

    def _probe(self) -> Marks:
        """The marks, from rendering two tiny conversations."""
        ask: dict[str, object] = {"role": "user", "content": "a"}
        answer: dict[str, object] = {"role": "assistant", "content": stand_in(0)}
        asked = self._render([ask], None)
        headed = self._render([ask], None, header=True)
        last = self._render([ask, answer], None).partition(stand_in(0))[2]
        between = self._render([ask, answer, {**ask, "content": stand_in(1)}], None)
        between = between.partition(stand_in(0))[2].partition(stand_in(1))[0]
        common = last[: common_prefix(last, between)]
        known = [token.end() for token in self._stops.known.finditer(common)]
        ends = known or [token.end() for token in self._tokens.finditer(common)]
        header = headed[self._whole(headed, common_prefix(asked, headed)) :]
        return Marks(header=header, end_of_turn=common[: max(ends, default=0)])

    def _headed(self, text: str, turns: Turns, tools: Tools, places: list[int]) -> Spans | None:
        """The answers right after their headers, found without rendering again; None if that is not certain.

        It is certain if only the template can have written a header: then there are as many headers as answers.
        """
        header, closing = self.marks.header, self.marks.end_of_turn
        if not (header and closing) or tools or text.count(header) != len(places):
            return None
        if any(header in str(turn["content"]) for turn in turns if turn["role"] != "assistant"):
            return None
        spans, position = [], 0
        for place in places:
            start = text.index(header, position) + len(header)
            end = _printed_until(turns[place], text, start, closing)
            if end is None:
                return None
            spans.append((start, end))
            position = end
        return spans

    def _aligned(
        self, text: str, turns: Turns, tools: Tools, places: list[int], variables: Mapping[str, object]
    ) -> Spans | None:
        """All answers at once if the template prints them unchanged; else None."""
        answers = [turns[place]["content"] for place in places]
        if any(_is_special(turns[place]) for place in places):
            return None
        replaced = list(turns)
        for number, place in enumerate(places):
            replaced[place] = {"role": "assistant", "content": stand_in(number)}
        fixed = _STAND_IN.split(self._render(replaced, tools, variables))
        if len(fixed) != len(answers) + 1 or not text.startswith(fixed[0]):
            return None
        spans, position = [], len(fixed[0])
        for answer, before, after in zip(answers, fixed[:-1], fixed[1:], strict=True):
            assert isinstance(answer, str)
            printed = next((a for a in (answer, answer.strip()) if text.startswith(a + after, position)), None)
            if printed is None:
                return None
            spans.append((position - self._after_last_header(before), position + len(printed)))
            position += len(printed) + len(after)
        return spans if position == len(text) else None

    def _after_last_header(self, before: str) -> int:
        """Length of the generated text that the template puts between header and answer, such as an empty thought."""
        header = self.marks.header
        found = before.rfind(header) if header else -1
        return len(before) - found - len(header) if found >= 0 else 0

    def _compared(
        self, text: str, turns: Turns, tools: Tools, places: list[int], variables: Mapping[str, object]
    ) -> Spans:
        """Locates one answer at a time by the difference in the text when the content of the turn changes."""
        spans: Spans = []
        for place in places:
            lowest = spans[-1][1] if spans else 0
            plain: dict[str, object] = {"role": "assistant", "content": stand_in(0)}
            try:
                other = self._render([*turns[:place], plain, *turns[place + 1 :]], tools, variables)
                start, end = _difference(text, other)
            except RowError:  # the turns that follow need the tool calls of this one
                start, end = self._compared_in_kind(text, turns, tools, place, lowest, variables)
            spans.append((self._after_header(text, start, lowest), max(start, self._whole(text, end))))
        return spans

    def _compared_in_kind(
        self, text: str, turns: Turns, tools: Tools, place: int, lowest: int, variables: Mapping[str, object]
    ) -> tuple[int, int]:
        """Locates an answer whose calls are needed: its start from the conversation so far, its end by changing
        arguments.
        """
        other = self._render([*turns[:place], _alike(turns[place]), *turns[place + 1 :]], tools, variables)
        start, end = _difference(text, other)
        closing = text.find(self.marks.end_of_turn, end) if self.marks.end_of_turn else -1
        token = self._tokens.search(text, end)
        end = closing if closing >= 0 else token.start() if token else end
        begins = [
            begin
            for shown in (tools, None)
            if lowest <= (begin := self._begin(text, turns[:place], shown, variables)) < start
        ]
        return max(begins, default=start), end

    def _begin(self, text: str, before: Turns, tools: Tools, variables: Mapping[str, object]) -> int:
        """Start of the answer to these turns; without tools, because templates print them before the last question.

        -1 if the template rejects the conversation.
        """
        try:
            answered = self._render([*before, {"role": "assistant", "content": stand_in(0)}], tools, variables)
        except RowError:
            return -1
        return common_prefix(text, answered)

    def _whole(self, text: str, place: int) -> int:
        """The position, or the start of the added token that contains it: the texts ended with two different ones."""
        nearby = self._tokens.finditer(text, max(0, place - _LONGEST_TOKEN), place + _LONGEST_TOKEN)
        return next((token.start() for token in nearby if token.start() < place < token.end()), place)

    def _after_header(self, text: str, start: int, lowest: int) -> int:
        """Start of the answer: right after its header, which is part of the prompt."""
        header = self.marks.header
        found = text.rfind(header, lowest, start - 1 + len(header)) if header else -1  # begins before the answer
        return found + len(header) if found >= 0 else _before_thought(text, start, lowest)


def _before_thought(text: str, start: int, lowest: int) -> int:
    """The start, before an opening thought that both texts share."""
    opened = text.rfind("<think>", lowest, start)
    return opened if opened >= 0 and _OPENED_THOUGHT.fullmatch(text, opened, start) else start


def _alike(turn: Mapping[str, object]) -> dict[str, object]:
    """A turn of the same kind with different content."""
    other = {**turn, **{key: stand_in(2) for key in _LATE_THOUGHTS if turn.get(key)}}
    if turn["content"]:
        other["content"] = stand_in(0)
    calls: Any = turn.get("tool_calls")
    if calls:
        other["tool_calls"] = [_call_alike(call) for call in calls]
    return other


def _call_alike(call: Mapping[str, Any]) -> dict[str, Any]:
    arguments = dict.fromkeys(call["function"]["arguments"], stand_in(3)) if _is_object(call) else {stand_in(3): 1}
    as_given = arguments if not isinstance(call["function"]["arguments"], str) else json.dumps(arguments)
    return {**call, "function": {**call["function"], "arguments": as_given}}


def _is_object(call: Mapping[str, Any]) -> bool:
    return isinstance(call["function"]["arguments"], Mapping) and bool(call["function"]["arguments"])


def _difference(text: str, other: str) -> tuple[int, int]:
    """Where the text differs from the other one, [start, end)."""
    start = common_prefix(text, other)
    return start, len(text) - common_prefix(text[start:][::-1], other[start:][::-1])


def _printed_until(turn: Mapping[str, object], text: str, start: int, closing: str) -> int | None:
    """The end of an answer that is printed unchanged, possibly after an empty thought; else None."""
    answer = turn["content"]
    if _is_special(turn) or not isinstance(answer, str):
        return None
    thought = _OPENED_THOUGHT.match(text, start)
    for begin in (start, thought.end() if thought else start):
        for printed in (answer, answer.strip()):
            if text.startswith(printed, begin) and text.startswith(closing, begin + len(printed)):
                return begin + len(printed)
    return None


def _is_special(turn: Mapping[str, object]) -> bool:
    """Whether templates may print the turn differently from its content."""
    content = turn["content"]
    return len(turn) > 2 or not isinstance(content, str) or not content.strip() or "</think>" in content


def common_prefix(first: str, second: str) -> int:
    """Number of leading characters that both have in common."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
