"""Which characters of a rendered conversation are trained, and with which weight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from megatron_trainer.data.loss_scale import STRATEGIES, Strategy
from megatron_trainer.data.rendering import Rendering, Turn
from megatron_trainer.data.values import Message


@dataclass(frozen=True, kw_only=True)
class Span:
    """Characters [start, end) trained with this weight, which is above 0."""

    start: int
    end: int
    weight: float = 1.0


def spans(rendering: Rendering, messages: Sequence[Message], loss_scale: str) -> list[Span]:
    """The trained parts of a rendered conversation, in order, not overlapping.

    A turn's own `loss` overrides which turns the strategy trains: true trains it, false leaves it out.
    """
    strategy = STRATEGIES[loss_scale]
    chosen = [turn for turn in rendering.turns if _is_trained(turn, rendering, messages, strategy)]
    if strategy.turns == "all":
        return _all_but(rendering, [turn for turn in rendering.turns if turn not in chosen])
    if strategy.weighing is None:
        return [Span(start=turn.start, end=turn.end) for turn in chosen]
    return [span for turn in chosen for span in _weighed(turn, rendering, messages, strategy)]


def _is_trained(turn: Turn, rendering: Rendering, messages: Sequence[Message], strategy: Strategy) -> bool:
    loss = messages[turn.message].loss
    if loss is not None:
        return loss
    return strategy.turns != "last" or turn == rendering.turns[-1]


def _weighed(turn: Turn, rendering: Rendering, messages: Sequence[Message], strategy: Strategy) -> Iterator[Span]:
    """The parts of one answer, and what closes it with weight 1."""
    assert strategy.weighing is not None
    asked = (message.content for message in reversed(messages[: turn.message]) if message.role == "user")
    for start, end, weight in strategy.weighing.parts(rendering.text[turn.start : turn.closing], next(asked, "")):
        if start < end and weight > 0:
            yield Span(start=turn.start + start, end=turn.start + end, weight=weight)
    if turn.closing < turn.end:
        yield Span(start=turn.closing, end=turn.end)


def _all_but(rendering: Rendering, left_out: list[Turn]) -> list[Span]:
    edges = [0, *(edge for turn in left_out for edge in (turn.start, turn.end)), len(rendering.text)]
    parts = zip(edges[::2], edges[1::2], strict=True)
    return [Span(start=start, end=end) for start, end in parts if start < end]
