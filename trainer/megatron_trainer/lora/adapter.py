"""Common to all kinds of adapters: settings, pairs of weights, and the place in a module."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from megatron_trainer.lora.names import unwrapped

Offsets = tuple[tuple[int, int, int], ...]
"""Axes prepended to a tensor's own in a distributed checkpoint: (axis, offset on it, its size)."""

MODULE = "lora"
"""Name of the adapter within the module that it adapts."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings shared by all adapters of a run; `seed` and the module's name determine the initial A.

    parts: number of adapters side by side in one: q, k and v with separate A form one of three times the rank.
    """

    rank: int
    alpha: int
    dropout: float
    rank_stabilized: bool
    seed: int
    parts: int = 1

    @property
    def width(self) -> int:
        """Rows of A and columns of B."""
        return self.rank * self.parts

    @property
    def scale(self) -> float:
        """alpha / r, or alpha / sqrt(r) when rank-stabilized (Kalajdzievski 2023)."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One adapted weight with this rank's parts of A and B; transposed when the weight is a table [I, O]."""

    weight: torch.nn.Parameter
    a: torch.nn.Parameter
    b: torch.nn.Parameter
    transposed: bool = False

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.a.shape[0]

    def delta(self, scale: float) -> torch.Tensor:
        """What merging adds to this rank's part of the weight, float32."""
        product = scale * (self.b.float() @ self.a.float())
        return product.t() if self.transposed else product


class Adapter(torch.nn.Module, ABC):
    """Computes the term that is added to a module's output.

    group: the ranks that split the weight. active: whether anything is added. originals: None while the adapter is not
    merged, else the weights with copies of their previous values, on the host, if kept.
    """

    settings: Settings
    group: torch.distributed.ProcessGroup
    active: bool = True
    originals: list[tuple[torch.nn.Parameter, torch.Tensor]] | None = None

    def branch(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(x for the module, the low-rank product of x if it is computed in the same pass)."""
        return x, None

    def add_to(
        self, y: torch.Tensor, seen: torch.Tensor, low: torch.Tensor | None, *args: torch.Tensor
    ) -> torch.Tensor:
        """The module's output y plus the adapter's term. seen: the input of the module's weight; low: from `branch`."""
        assert low is None
        added: torch.Tensor = self(seen, *args)
        return y + added

    def apart(
        self, y: torch.Tensor, seen: torch.Tensor, low: torch.Tensor | None, *args: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `add_to`, or the output and what the caller adds to it; here always (the sum, None)."""
        return self.add_to(y, seen, low, *args), None

    @abstractmethod
    def pairs(self, base: torch.nn.Module) -> Iterator[Pair]:
        """The weights of the adapted module `base`, each with its A and B."""

    @abstractmethod
    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Offsets = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """A and B for a distributed checkpoint, sharded so that any layout can load them."""


def adapter_of(module: torch.nn.Module) -> Adapter:
    """The adapter within an adapted module."""
    adapter = getattr(module, MODULE)
    assert isinstance(adapter, Adapter)
    return adapter


def adapted_modules(chunks: Sequence[torch.nn.Module]) -> list[torch.nn.Module]:
    """This rank's modules that have an adapter."""
    return [module for chunk in map(unwrapped, chunks) for module in chunk.modules() if hasattr(module, MODULE)]
