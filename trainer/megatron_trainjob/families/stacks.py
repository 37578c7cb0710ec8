"""Experts that are stored together, one tensor for all of a layer, as Qwen3-VL's mixtures have them.

Weight tables name each expert's matrices; a stack is where they are in files. It has one of two forms, which
transformers tells apart by shape: as in its modules, [experts, rows, columns] of each matrix, or as published, with
rows and columns exchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

PARTS: Mapping[str, tuple[str, ...]] = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""Last parts of the names of stacks -> those of the matrices that they hold, one over the other."""

_EXPERTS = ".mlp.experts"
_WEIGHT = ".weight"
_MOST_EXPERTS = 2**14
"""Of a layer, far more than any model has: the header of a damaged file may claim any number."""


@dataclass(frozen=True, kw_only=True)
class Slab:
    """One matrix of one expert. stack: the name of its stack. first, rows, columns: its place in the expert's part of
    the stack, counted as in transformers' modules. is_exchanged: rows and columns are stored exchanged.
    """

    stack: str
    expert: int
    first: int
    rows: int
    columns: int
    is_exchanged: bool

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the matrix."""
        return self.rows, self.columns


def stack_of(name: str) -> tuple[str, int, int] | None:
    """(the stack, the expert, the position within its part) of a matrix of an expert; None for another tensor."""
    before, found, after = name.partition(f"{_EXPERTS}.")
    expert, _, part = after.removesuffix(_WEIGHT).partition(".")
    if not found or not expert.isdigit() or not name.endswith(_WEIGHT):
        return None
    for kind, parts in PARTS.items():
        if part in parts:
            return f"{before}{_EXPERTS}.{kind}", int(expert), parts.index(part)
    return None


def is_stack(name: str) -> bool:
    """Whether this is the name of a stack."""
    owner, _, kind = name.rpartition(".")
    return owner.endswith(_EXPERTS) and kind in PARTS


def is_exchanged(name: str, shape: Sequence[int], hidden_size: int) -> bool:
    """Whether a stack of this shape has rows and columns exchanged; a shape that fits both ways is not, as
    transformers reads it.
    """
    return shape[2 if name.endswith("gate_up_proj") else 1] != hidden_size


def slabs(name: str, shape: Sequence[int], hidden_size: int) -> dict[str, Slab]:
    """The matrices in a stack by the names that weight tables have for them; none if its shape is wrong."""
    parts = PARTS[name.rpartition(".")[2]]
    if len(shape) != 3 or 0 in shape or shape[0] > _MOST_EXPERTS:
        return {}
    exchanged = is_exchanged(name, shape, hidden_size)
    experts, rows, columns = (shape[0], shape[2], shape[1]) if exchanged else shape
    if rows % len(parts):
        return {}
    size = rows // len(parts)
    return dict(_named(name, experts, size, columns, is_exchanged=exchanged))


def _named(name: str, experts: int, rows: int, columns: int, *, is_exchanged: bool) -> Iterator[tuple[str, Slab]]:
    owner, _, kind = name.rpartition(".")
    for expert in range(experts):
        for number, part in enumerate(PARTS[kind]):
            slab = Slab(
                stack=name,
                expert=expert,
                first=number * rows,
                rows=rows,
                columns=columns,
                is_exchanged=is_exchanged,
            )
            yield f"{owner}.{expert}.{part}{_WEIGHT}", slab
