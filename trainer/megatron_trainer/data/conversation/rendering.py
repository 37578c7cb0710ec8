"""A conversation rendered by a template: the text and the location of each assistant turn."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from megatron_trainer.data.values import Message

Tools = Sequence[Mapping[str, object]] | None


@dataclass(frozen=True, kw_only=True)
class Turn:
    """An assistant turn as characters [start, end) of the text: what the model must generate, including its end.

    message: index of the turn in the conversation. closing: end of its answer and start of its closing text, which is
    empty if the template prints nothing at which a model could stop.
    """

    message: int
    start: int
    closing: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A part of a row that is missing from the text: its kind (a fixed text, for counting), and the part."""

    kind: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """A rendered conversation; turns are in order and do not overlap. lost: parts of the row that the text lacks.

    notes: where the text differs from the template's own, worded the same for all rows of a kind.
    """

    text: str
    turns: tuple[Turn, ...]
    lost: tuple[Loss, ...] = ()
    notes: tuple[str, ...] = ()


class Template(Protocol):
    """Renders conversations."""

    @property
    def name(self) -> str:
        """Identifies the template (with the tokenizer) in cache keys: its whole text."""
        ...

    @property
    def stop_words(self) -> tuple[str, ...]:
        """The texts with which trained turns end, usually one special token, at which generation has to stop."""
        ...

    def render(
        self, messages: Sequence[Message], tools: Tools = None, trained: Container[int] | None = None
    ) -> Rendering:
        """The text and its assistant turns.

        trained: the messages that are trained, None for every assistant turn; the others may lack their thoughts.

        Raises RowError when the template does not support something.
        """
        ...
