"""Experts that are stored together, one tensor for all of a layer, as Qwen3-VL's mixtures and gpt-oss have them.

Weight tables name each expert's matrices; a stack is where they are in files. It has one of two forms: [experts, rows,
columns] of each matrix, or with rows and columns exchanged. Where a family has both, as in transformers' modules and as
published, the shape distinguishes them. Biases of experts are stacks of rows alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

PARTS: Mapping[str, tuple[str, ...]] = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""Last parts of the names of stacks -> those of the matrices that they hold, one over the other."""

_EXPERTS = (".mlp.experts", ".feed_forward.experts", ".experts")
_KINDS: Mapping[str, str] = {".weight": "", ".bias": "_bias"}
"""Ends of the names of matrices and biases -> those of their stacks."""
_MOST_EXPERTS = 2**14
"""Of a layer, far more than any model has: the header of a damaged file may claim any number."""


@dataclass(frozen=True, kw_only=True)
class StackForm:
    """How a family stores its stacks. is_exchanged: whether rows and columns are exchanged, None: as the shape shows.

    interleaves: rows of gate and up alternate, where they otherwise lie one over the other. exchanges_adapters: peft
    takes the inputs of these matrices for their outputs, so that its A and B are the other way around.
    """

    is_exchanged: bool | None = None
    interleaves: bool = False
    exchanges_adapters: bool = False

    def of(self, *, is_block: bool) -> StackForm:
        """The form of a stack; blocks of four-bit numbers lie along the columns, which are never exchanged."""
        return replace(self, is_exchanged=False) if is_block else self


STACK_FORM = StackForm()
"""The form of families that say nothing else."""


@dataclass(frozen=True, kw_only=True)
class Slab:
    """One matrix of one expert. stack: the name of its stack. first, step, rows, columns: its place in the expert's
    part of the stack, counted as in transformers' modules; no columns in a bias. is_exchanged: rows and columns are
    stored exchanged.
    """

    stack: str
    expert: int
    first: int
    rows: int
    columns: int | None
    is_exchanged: bool
    step: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the matrix."""
        return (self.rows,) if self.columns is None else (self.rows, self.columns)


def stack_of(name: str) -> tuple[str, int, int] | None:
    """(the stack, the expert, the position within its part) of a matrix of an expert; None for another tensor."""
    owner = next((each for each in _EXPERTS if f"{each}." in name), "")
    before, found, after = name.partition(f"{owner}.")
    expert, _, last = after.partition(".")
    part, dot, end = last.rpartition(".")
    suffix = _KINDS.get(dot + end)
    if not owner or not found or not expert.isdigit() or suffix is None:
        return None
    for kind, parts in PARTS.items():
        if part in parts:
            return f"{before}{owner}.{kind}{suffix}", int(expert), parts.index(part)
    return None


def is_stack(name: str) -> bool:
    """Whether this is the name of a stack."""
    owner, _, kind = name.rpartition(".")
    return owner.endswith(_EXPERTS) and kind.removesuffix(_KINDS[".bias"]) in PARTS


def parts_of(stack: str) -> tuple[str, ...]:
    """The last parts of the names of the matrices in a stack."""
    return PARTS[stack.rpartition(".")[2].removesuffix(_KINDS[".bias"])]


def is_exchanged(name: str, shape: Sequence[int], hidden_size: int, form: StackForm) -> bool:
    """Whether a stack of this shape has rows and columns exchanged; a shape that fits both ways is not, as
    transformers reads it.
    """
    if form.is_exchanged is not None or len(shape) == 2:
        return bool(form.is_exchanged) and len(shape) > 2
    return shape[2 if name.endswith("gate_up_proj") else 1] != hidden_size


def slabs(name: str, shape: Sequence[int], hidden_size: int, form: StackForm) -> dict[str, Slab]:
    """The matrices in a stack by the names that weight tables have for them; none if its shape is wrong."""
    is_bias = name.endswith(_KINDS[".bias"])
    if len(shape) != (2 if is_bias else 3) or 0 in shape or shape[0] > _MOST_EXPERTS:
        return {}
    exchanged = is_exchanged(name, shape, hidden_size, form)
    size = (shape[2], shape[1]) if exchanged else shape[1:]
    if size[0] % len(parts_of(name)):
        return {}
    return dict(_named(name, shape[0], size, exchanged=exchanged, interleaves=form.interleaves))


def names(stack: str, experts: int) -> list[str]:
    """The names of the matrices in a stack of so many experts."""
    owner = stack.rpartition(".")[0]
    end = ".bias" if stack.endswith(_KINDS[".bias"]) else ".weight"
    return [f"{owner}.{expert}.{part}{end}" for expert in range(experts) for part in parts_of(stack)]


def _named(
    name: str, experts: int, size: Sequence[int], *, exchanged: bool, interleaves: bool
) -> Iterator[tuple[str, Slab]]:
    owner, parts = name.rpartition(".")[0], parts_of(name)
    rows = size[0] // len(parts)
    end = ".bias" if len(size) == 1 else ".weight"
    for expert in range(experts):
        for number, part in enumerate(parts):
            slab = Slab(
                stack=name,
                expert=expert,
                first=number if interleaves else number * rows,
                rows=rows,
                columns=size[1] if len(size) > 1 else None,
                is_exchanged=exchanged,
                step=len(parts) if interleaves else 1,
            )
            yield f"{owner}.{expert}.{part}{end}", slab
