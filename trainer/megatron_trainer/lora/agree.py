"""What all ranks know together, where each holds only some layers: found names, and one verdict for all."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from megatron_trainjob.violation import Violation


def union(names: Iterable[str]) -> frozenset[str]:
    """The names that any rank has. Collective."""
    return frozenset().union(*_gathered(frozenset(names)))


def intersection(names: Iterable[str]) -> frozenset[str]:
    """The names that every rank has: what is unmatched everywhere is unmatched. Collective."""
    return frozenset.intersection(*_gathered(frozenset(names)))


def violations(found: Iterable[Violation]) -> tuple[Violation, ...]:
    """The violations that any rank found, each once, in a fixed order. Collective."""
    everyone = frozenset().union(*_gathered(frozenset(found)))
    return tuple(sorted(everyone, key=str))


def _gathered[Item](items: frozenset[Item]) -> list[frozenset[Item]]:
    if not torch.distributed.is_initialized():
        return [items]
    everyone: list[frozenset[Item]] = [frozenset()] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, items)
    return everyone
