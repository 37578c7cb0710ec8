"""The characters of a rendered conversation that are trained, with their weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from megatron_trainer.data.conversation.rendering import Rendering, Turn
from megatron_trainer.data.encoding.loss_scale import STRATEGIES, Strategy
from megatron_trainer.data.values import Message, RowError


@dataclass(frozen=True, kw_only=True)
class Span:
    """Characters [start, end) trained with this weight, which is above 0."""

    start: int
    end: int
    weight: float = 1.0


def trained_messages(messages: Sequence[Message], loss_scale: str) -> frozenset[int]:
    """The assistant turns that are trained, by index."""
    turns = [place for place, message in enumerate(messages) if message.role == "assistant"]
    return frozenset(place for place in turns if _chosen(messages[place], loss_scale, is_last=place == turns[-1]))


def _chosen(message: Message, loss_scale: str, *, is_last: bool) -> bool:
    if message.loss is not None:
        return message.loss > 0
    return STRATEGIES[loss_scale].turns != "last" or is_last


def spans(rendering: Rendering, messages: Sequence[Message], loss_scale: str) -> list[Span]:
    """The trained parts of a rendered conversation, in order, not overlapping.

    A turn's own `loss` overrides which turns the strategy trains: true trains it, false excludes it, a number scales
    its weights.
    """
    strategy = STRATEGIES[loss_scale]
    trained = trained_messages(messages, loss_scale)
    chosen = [turn for turn in rendering.turns if turn.message in trained]
    if strategy.turns == "all":
        return _all_but(rendering, [turn for turn in rendering.turns if turn not in chosen])
    weights = {turn.message: float(messages[turn.message].loss or 1) for turn in chosen}
    if strategy.weighing is None:
        return [
            Span(start=start, end=end, weight=weights[turn.message])
            for turn in chosen
            for start, end in _own_parts(turn, rendering, messages[turn.message])
        ]
    return [
        replace(span, weight=span.weight * weights[turn.message])
        for turn in chosen
        for span in _weighed(turn, rendering, messages, strategy)
    ]


def _weighed(turn: Turn, rendering: Rendering, messages: Sequence[Message], strategy: Strategy) -> Iterator[Span]:
    """The parts of one answer, and its closing text with weight 1."""
    assert strategy.weighing is not None
    asked = next((message.content for message in reversed(messages[: turn.message]) if message.role == "user"), "")
    for first, last in _own_parts(turn, rendering, messages[turn.message]):
        for start, end, weight in strategy.weighing.parts(rendering.text[first : min(last, turn.closing)], asked):
            if start < end and weight > 0:
                yield Span(start=first + start, end=first + end, weight=weight)
        if last == turn.end and turn.closing < turn.end:
            yield Span(start=turn.closing, end=turn.end)


def _own_parts(turn: Turn, rendering: Rendering, message: Message) -> Iterator[tuple[int, int]]:
    """[start, end) of what the model writes itself: the turn without the parts that its message was given."""
    if not message.given:
        yield turn.start, turn.end
        return
    content = message.content.strip()
    found = rendering.text.find(content, turn.start, turn.closing)
    if found < 0:
        raise RowError("the chat template changes an answer that holds results of tools")
    start, place = turn.start, found - message.content.index(content)
    for first, last in message.given:
        if start < place + first:
            yield start, place + first
        start = turn.end if last == len(message.content) else place + last
    if start < turn.end:
        yield start, turn.end


def _all_but(rendering: Rendering, left_out: list[Turn]) -> list[Span]:
    edges = [0, *(edge for turn in left_out for edge in (turn.start, turn.end)), len(rendering.text)]
    parts = zip(edges[::2], edges[1::2], strict=True)
    return [Span(start=start, end=end) for start, end in parts if start < end]
