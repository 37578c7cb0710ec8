"""What every kind of adapter has in common: its settings, its pairs of weights, and its place in a module."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from megatron_trainer.lora.names import unwrapped

Offsets = tuple[tuple[int, int, int], ...]
"""Axes that stand before a tensor's own in a distributed checkpoint: (axis, place on it, its size)."""

MODULE = "lora"
"""Name of the adapter within the module that it adapts."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The numbers that every adapter of a run shares; `seed` and the module's name decide the first A.

    parts: adapters that are side by side in one: those of q, k and v with an A each are one of three times the rank.
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
    """Computes what is added to a module's output.

    group: the ranks that split the weight. active: whether anything is added. originals: None when the adapter is not
    merged, else the weights with copies of their values from before, on the host, if they were kept.
    """

    settings: Settings
    group: torch.distributed.ProcessGroup
    active: bool = True
    originals: list[tuple[torch.nn.Parameter, torch.Tensor]] | None = None

    def branch(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(x for the module, this adapter's low-rank product of it if it makes that from the same read)."""
        return x, None

    def add_to(
        self, y: torch.Tensor, seen: torch.Tensor, low: torch.Tensor | None, *args: torch.Tensor
    ) -> torch.Tensor:
        """The module's output y with what the adapter adds. seen: what the module's weight saw; low: from `branch`."""
        assert low is None
        added: torch.Tensor = self(seen, *args)
        return y + added

    @abstractmethod
    def pairs(self, base: torch.nn.Module) -> Iterator[Pair]:
        """The weights of the adapted module `base`, each with its A and B."""

    @abstractmethod
    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Offsets = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """A and B for a distributed checkpoint, cut so that any layout can load them."""


def adapter_of(module: torch.nn.Module) -> Adapter:
    """The adapter within an adapted module."""
    adapter = getattr(module, MODULE)
    assert isinstance(adapter, Adapter)
    return adapter


def adapted_modules(chunks: Sequence[torch.nn.Module]) -> list[torch.nn.Module]:
    """This rank's modules that have an adapter."""
    return [module for chunk in map(unwrapped, chunks) for module in chunk.modules() if hasattr(module, MODULE)]
