"""Restores the thoughts of trained turns that a chat template removes.

Templates print earlier turns without their thoughts (Qwen3, GLM-4.5), or every turn (R1 distills). A turn trained in
such a form would teach the model what it never generates. So a trained turn keeps its thought: as the template prints
it when the turn is the last one, or, if no turn keeps its thought, between <think> and </think>.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from megatron_trainer.data.conversation.conserve import split_thought
from megatron_trainer.data.conversation.locate import Marks
from megatron_trainer.data.values import Message

KEPT = "the chat template removes the thoughts of earlier turns; they are kept (preserve_thinking)"
WRITTEN = "the chat template removes thoughts; they are written before their answers (preserve_thinking)"
_EMPTY = re.compile(r"\s*<think>\s*</think>\s*")


@dataclass(frozen=True, kw_only=True)
class Bodies:
    """A text with its answers: spans[i] = [start, end) of the turn at places[i], without its closing text."""

    text: str
    spans: list[tuple[int, int]]
    places: list[int]

    def body(self, number: int) -> str:
        """One answer."""
        start, end = self.spans[number]
        return self.text[start:end]

    def replaced(self, others: Mapping[int, str]) -> Bodies:
        """The text with some answers replaced, by their index."""
        if not others:
            return self
        pieces, spans, position, length = [], [], 0, 0
        for number, (start, end) in enumerate(self.spans):
            body = others.get(number, self.text[start:end])
            pieces += [self.text[position:start], body]
            length += start - position
            spans.append((length, length + len(body)))
            length += len(body)
            position = end
        return Bodies(text="".join([*pieces, self.text[position:]]), spans=spans, places=self.places)


@dataclass(frozen=True, kw_only=True)
class Thoughts:
    """How thoughts are treated with one template.

    is_known: whether the template supports thoughts at all. preserves, adds_empty: chat_template.TemplateSettings.
    """

    marks: Marks
    is_known: bool
    preserves: bool | None
    adds_empty: bool | None

    def keeps_any(self, messages: Sequence[Message], is_trained: Sequence[bool]) -> bool:
        """Whether an answer before the last one has a thought to keep."""
        last = max((place for place, message in enumerate(messages) if message.role == "assistant"), default=0)
        return any(self._keeps(messages[place], is_trained[place]) for place in range(last))

    def may_lack(self, messages: Sequence[Message], is_trained: Sequence[bool]) -> frozenset[int]:
        """The turns whose thoughts the template may remove by convention: those that are not trained."""
        if not self.is_known or self.preserves:
            return frozenset()
        return frozenset(place for place in range(len(messages)) if not is_trained[place])

    def restored(
        self,
        bodies: Bodies,
        messages: Sequence[Message],
        is_trained: Sequence[bool],
        as_last: Callable[[int], str | None],
    ) -> tuple[Bodies, tuple[str, ...]]:
        """The answers with their thoughts, and notes about what was changed. as_last: an answer as the last turn."""
        others: dict[int, str] = {}
        notes: dict[str, None] = {}
        for number, place in enumerate(bodies.places):
            body, message = bodies.body(number), messages[place]
            is_last = number == len(bodies.places) - 1
            own = _once(as_last, place, default=body if is_last else None)
            other = body
            if self._keeps(message, is_trained[place]) and not _has_thought(body, message):
                other, note = self._with_thought(body, message, own())
                notes[note] = None
            elif not split_thought(message)[0] and is_trained[place]:
                other = self._without_thought(body, own)
            if other != body:
                others[number] = other
        restored = bodies.replaced(others)
        return self._after_opened(restored, others), tuple(notes)

    def _keeps(self, message: Message, is_trained: bool) -> bool:  # noqa: FBT001 (one of two facts about a turn)
        wanted = is_trained if self.preserves is None else self.preserves
        return wanted and bool(self.is_known or self.preserves) and bool(split_thought(message)[0])

    def _with_thought(self, body: str, message: Message, own: str | None) -> tuple[str, str]:
        if own is not None and _has_thought(own, message):
            return own, KEPT
        rest = own or body
        empty = _EMPTY.match(rest)
        return written_thought(message) + rest[empty.end() if empty else 0 :].lstrip("\n"), WRITTEN

    def _without_thought(self, body: str, as_last: Callable[[], str | None]) -> str:
        """An answer without a thought, with or without an empty one according to add_non_thinking_prefix."""
        has_empty = _EMPTY.match(body)
        if self.adds_empty is False and has_empty:
            return body[has_empty.end() :]
        if self.adds_empty and not has_empty:
            own = as_last()
            return own if own is not None and _EMPTY.match(own) else body
        return body

    def _after_opened(self, bodies: Bodies, others: Mapping[int, str]) -> Bodies:
        """The answers without the opening tag in the header, which is part of the prompt."""
        spans = [
            (self._start(bodies.text, start) if number in others else start, end)
            for number, (start, end) in enumerate(bodies.spans)
        ]
        return Bodies(text=bodies.text, spans=spans, places=bodies.places)

    def _start(self, text: str, start: int) -> int:
        header = self.marks.header
        for length in range(len(header), 0, -1):
            if text.endswith(header[:length], 0, start) and text.startswith(header[length:], start):
                return start + len(header) - length
        return start


def _once(as_last: Callable[[int], str | None], place: int, default: str | None) -> Callable[[], str | None]:
    return lambda: as_last(place) if default is None else default


def _has_thought(body: str, message: Message) -> bool:
    return split_thought(message)[0].strip() in body


def written_thought(message: Message) -> str:
    """A thought as models of this kind generate it, in the row's own spelling if it is part of the answer."""
    if message.thought:
        return f"<think>\n{message.thought.strip()}\n</think>\n\n"
    _, answer = split_thought(message)
    given = message.content[: len(message.content) - len(answer)]
    return given if "<think>" in given else f"<think>\n{given}"
