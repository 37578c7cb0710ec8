"""Combines what the ranks know, each of which holds only some layers: matched names, and one verdict for all."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from megatron_trainjob.violation import Violation


def union(names: Iterable[str]) -> frozenset[str]:
    """The names that at least one rank has. Collective."""
    return frozenset().union(*_gathered(frozenset(names)))


def intersection(names: Iterable[str]) -> frozenset[str]:
    """The names that every rank has: a name is unmatched if no rank matches it. Collective."""
    return frozenset.intersection(*_gathered(frozenset(names)))


def violations(found: Iterable[Violation]) -> tuple[Violation, ...]:
    """The violations found by any rank, each once, in a fixed order. Collective."""
    everyone = frozenset().union(*_gathered(frozenset(found)))
    return tuple(sorted(everyone, key=str))


def _gathered[Item](items: frozenset[Item]) -> list[frozenset[Item]]:
    if not torch.distributed.is_initialized():
        return [items]
    everyone: list[frozenset[Item]] = [frozenset()] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, items)
    return everyone
