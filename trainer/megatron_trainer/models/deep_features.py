"""States of a vision tower that are added to the outputs of the decoder's first layers (Qwen3-VL's deep features).

A layer may run again in the backward pass, after the forward passes of other micro-batches; it then finds
the features of its own micro-batch by the storage of its rotary angles, which recomputation keeps. Gradients of
features accumulate in leaves and go back to the tower once, when those of all layers are known:
recomputed layers cannot all pass through one graph.

Shape suffixes: T tokens of this rank, B rows, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class DeepFeatures:
    """The features of the micro-batches whose backward pass is still to come."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._leaves_of: dict[int, list[Tensor]] = {}
        self._current: list[Tensor] | None = None
        self._is_forward = False
        self._keeps = False
        for number, layer in enumerate(layers):
            layer.register_forward_hook(self._adding(number), with_kwargs=True)

    def attached(self, hidden_TBH: Tensor, features_TBH: Sequence[Tensor]) -> Tensor:
        """The same hidden states, whose backward pass takes the gradients of the features with it."""
        self._keeps = torch.is_grad_enabled() and hidden_TBH.requires_grad
        if not self._keeps:
            self._current = list(features_TBH)
            return hidden_TBH
        self._current = [feature.detach().requires_grad_(feature.requires_grad) for feature in features_TBH]
        joined: Tensor = _Joined.apply(hidden_TBH, self, self._current, *features_TBH)
        return joined

    @contextmanager
    def forward_pass(self) -> Iterator[None]:
        """The forward pass of one micro-batch; what `attached` was given belongs to it."""
        self._is_forward = True
        try:
            yield
        finally:
            self._current, self._is_forward, self._keeps = None, False, False

    def forget(self, leaves: list[Tensor]) -> None:
        """Drops the features of a micro-batch whose backward pass is over."""
        self._leaves_of = {key: each for key, each in self._leaves_of.items() if each is not leaves}

    def _note(self, key: int) -> None:
        """Notes whose angles are stored there: a micro-batch that has none may have got the storage of one that had."""
        self._leaves_of.pop(key, None)
        if self._current is not None and self._keeps:
            self._leaves_of[key] = self._current

    def _adding(self, number: int) -> Any:  # noqa: ANN401 - torch's hook
        def add(_: nn.Module, __: Any, named: dict[str, Any], output: Any) -> Any:  # noqa: ANN401
            key = named["rotary_pos_emb"].data_ptr()
            if self._is_forward:
                self._note(key)
            leaves = self._current if self._is_forward else self._leaves_of.get(key)
            if leaves is None:
                return output
            hidden_TBH, *rest = output
            return (hidden_TBH + leaves[number], *rest)

        return add


class _Joined(torch.autograd.Function):
    """Hidden states, with the features' gradients from their leaves in the backward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, owner: DeepFeatures, leaves: list[Tensor], *_: Tensor) -> Tensor:  # noqa: ANN401
        ctx.owner, ctx.leaves = owner, leaves
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        ctx.owner.forget(ctx.leaves)
        return gradient, None, None, *(leaf.grad for leaf in ctx.leaves)
