"""What a template makes of a conversation: the text, and where in it each assistant turn lies."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from megatron_trainer.data.values import Message

Tools = Sequence[Mapping[str, object]] | None


@dataclass(frozen=True, kw_only=True)
class Turn:
    """An assistant turn as characters [start, end) of the text: what the model has to produce, end of turn included.

    message: index of the turn in the conversation. closing: where its answer ends and what closes it starts. What
    closes it is empty when the template prints nothing that a model could stop at.
    """

    message: int
    start: int
    closing: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A part of a row that is not in the text: its kind (a fixed text, to be counted), and which part of which row."""

    kind: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """A rendered conversation; turns are in order and do not overlap. lost: parts of the row that the text lacks.

    notes: where the text is another than the template's own, in words that are the same for all rows of its kind.
    """

    text: str
    turns: tuple[Turn, ...]
    lost: tuple[Loss, ...] = ()
    notes: tuple[str, ...] = ()


class Template(Protocol):
    """Renders conversations."""

    @property
    def name(self) -> str:
        """What identifies the template (with the tokenizer) in cache keys: its whole text."""
        ...

    @property
    def stop_words(self) -> tuple[str, ...]:
        """The texts with which trained turns end, usually one special token: what generation has to stop at."""
        ...

    def render(
        self, messages: Sequence[Message], tools: Tools = None, trained: Container[int] | None = None
    ) -> Rendering:
        """The text and its assistant turns.

        trained: the messages that are trained, None for every assistant turn; the others may lack their thoughts.

        Raises RowError when the template has no place for something.
        """
        ...
