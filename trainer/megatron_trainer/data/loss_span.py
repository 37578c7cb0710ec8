"""Which characters of a rendered conversation are trained and with which weight: the loss_scale strategies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_trainer.data.rendering import Rendering, Turn
from megatron_trainer.data.values import Message

BINARY = frozenset({"default", "last_round", "all"})
"""Strategies that only choose which tokens are trained."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """Characters [start, end) trained with this weight; 0 means not trained."""

    start: int
    end: int
    weight: float = 1.0


def spans(rendering: Rendering, messages: Sequence[Message], strategy: str) -> list[Span]:
    """The trained parts of a rendered conversation, in order, not overlapping, weight > 0.

    A turn's own `loss` overrides the strategy: true trains it, false leaves it out.
    """
    chosen = [turn for turn in rendering.turns if _is_trained(turn, rendering, messages, strategy)]
    if strategy == "all":
        return _all_but(rendering, [turn for turn in rendering.turns if turn not in chosen])
    return [Span(start=turn.start, end=turn.end) for turn in chosen]


def _is_trained(turn: Turn, rendering: Rendering, messages: Sequence[Message], strategy: str) -> bool:
    loss = messages[turn.message].loss
    if loss is not None:
        return loss
    return not strategy.startswith("last_round") or turn == rendering.turns[-1]


def _all_but(rendering: Rendering, left_out: list[Turn]) -> list[Span]:
    edges = [0, *(edge for turn in left_out for edge in (turn.start, turn.end)), len(rendering.text)]
    parts = zip(edges[::2], edges[1::2], strict=True)
    return [Span(start=start, end=end) for start, end in parts if start < end]


def has_weights(strategy: str) -> bool:
    """Whether the strategy gives weights other than 0 and 1."""
    return strategy not in BINARY
