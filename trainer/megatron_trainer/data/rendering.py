"""What a template makes of a conversation: the text, and where in it each assistant turn lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from megatron_trainer.data.values import Message


@dataclass(frozen=True, kw_only=True)
class Turn:
    """An assistant turn as characters [start, end) of the text: what the model has to produce, end of turn included.

    message: index of the turn in the conversation. closing: where its answer ends and what closes it starts.
    """

    message: int
    start: int
    closing: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """A rendered conversation; turns are in order and do not overlap."""

    text: str
    turns: tuple[Turn, ...]


class Template(Protocol):
    """Renders conversations. `adds_special_tokens`: the tokenizer puts its own BOS and EOS around the text."""

    @property
    def name(self) -> str:
        """What identifies the template (with the tokenizer) in cache keys: its whole text."""
        ...

    def render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, object]] | None = None) -> Rendering:
        """The text and its assistant turns. Raises RowError when the template has no place for something."""
        ...
