"""Adam in one pass: a kernel reads gradients, main parameters and moments once, and writes what changes of them once.

TransformerEngine's kernel reaches a quarter to less than half of a GPU's memory bandwidth. The division of gradients by
the number of tokens, their clipping and the copies of main parameters to weights are further passes over all of them;
here the first two are a factor that the kernel multiplies each gradient by, and it writes the weights itself.

A table on the GPU has a row for each piece of a parameter: the addresses of its tensors, and its size.
"""

# ruff: noqa: ANN001, ANN202 - what Triton compiles takes pointers, blocks and constants
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from megatron_trainer.triton_start import start

_PIECE, _BLOCK = 2**15, 2**11
_ALIGNED = 16
"""Of sizes and of addresses, in bytes: what loads of 16 bytes need."""
_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.int16: tl.int16}
TYPES_OF_STATE = (torch.float32, torch.bfloat16)
_NUM_COLUMNS = tl.constexpr(6)


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """The tensors of one parameter, contiguous and of one size.

    main: float32, or bfloat16 with `remainder`, the int16 that make it float32 (patches.remainders). weight: written as
    a copy of main, None where main is the weight itself.
    """

    gradient: Tensor
    main: Tensor
    first: Tensor
    second: Tensor
    remainder: Tensor | None = None
    weight: Tensor | None = None

    def _tensors(self) -> tuple[Tensor | None, ...]:
        other = self.weight if self.remainder is None else self.remainder
        return self.gradient, self.main, self.first, self.second, other

    def addresses(self) -> tuple[int, ...]:
        """Of gradient, main, first and second moment, and of remainder or weight; 0 without."""
        return tuple(0 if each is None else each.data_ptr() for each in self._tensors())

    def types(self) -> tuple[torch.dtype | None, ...]:
        """Of the same."""
        return tuple(None if each is None else each.dtype for each in self._tensors())


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of one step of a group of parameters. step: counts from 1."""

    rate: float
    beta1: float
    beta2: float
    eps: float
    decay: float
    step: int
    corrects_bias: bool = True


Kind = tuple[tuple[torch.dtype | None, ...], bool]
"""Types of the tensors of a row, and whether it can be loaded 16 bytes at a time."""


Rows = dict[Kind, Tensor]
"""int64 [pieces, 6] of each kind, on the device."""


def rows_of(numbers: Sequence[Numbers], origin: Tensor) -> Rows:
    """The table of these parameters. origin: where addresses are counted from, aligned."""
    found: dict[Kind, list[Tensor]] = {}
    for each in numbers:
        types, places, size = each.types(), each.addresses(), each.gradient.numel()
        is_aligned = not any(place % _ALIGNED for place in (*places, size))
        starts = torch.arange(0, size, _PIECE, dtype=torch.int64)[:, None]
        widths = torch.tensor([1 if dtype is None else dtype.itemsize for dtype in types])
        distances = torch.tensor(places) - origin.data_ptr() + starts * widths
        sizes = (size - starts).clamp(max=_PIECE)
        units = _ALIGNED if is_aligned else widths
        rows = torch.cat([distances // units, sizes // (_ALIGNED if is_aligned else 1)], 1)
        found.setdefault((types, is_aligned), []).append(rows)
    return {kind: torch.cat(rows).to(origin.device) for kind, rows in found.items()}


def step(rows_of_kinds: Rows, factor: Tensor, settings: Settings) -> None:
    """One step of AdamW. factor: float32 [1], by which gradients are multiplied, not in place; the rows' origin."""
    corrects, count = settings.corrects_bias, settings.step
    arguments = (
        settings.rate, settings.beta1, 1.0 - settings.beta1, settings.beta2, 1.0 - settings.beta2, settings.eps,
        settings.decay, *(1.0 - beta**count if corrects else 1.0 for beta in (settings.beta1, settings.beta2)),
    )  # fmt: skip
    for (types, is_aligned), rows in rows_of_kinds.items():
        constants = (*(dtype and _TYPES[dtype] for dtype in types), types[1] != torch.float32, is_aligned)
        start(_adam, (len(rows),), rows, factor, *arguments, constants=(*constants, _PIECE, _BLOCK))


@triton.jit
def _adam(
    rows_ptr, factor_ptr, rate, beta1, rest1, beta2, rest2, eps, decay, correction1, correction2,
    GRADIENT: tl.constexpr, MAIN: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, OTHER: tl.constexpr,
    IS_SPLIT: tl.constexpr, IS_ALIGNED: tl.constexpr, PIECE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = rows_ptr + tl.program_id(0).to(tl.int64) * _NUM_COLUMNS
    gradient_ptr, main_ptr = (
        _place(row, factor_ptr, GRADIENT, IS_ALIGNED),
        _place(row + 1, factor_ptr, MAIN, IS_ALIGNED),
    )
    first_ptr, second_ptr = (
        _place(row + 2, factor_ptr, FIRST, IS_ALIGNED),
        _place(row + 3, factor_ptr, SECOND, IS_ALIGNED),
    )
    other_ptr = main_ptr if OTHER is None else _place(row + 4, factor_ptr, OTHER, IS_ALIGNED)
    size = tl.load(row + 5) * (16 if IS_ALIGNED else 1)
    factor = tl.load(factor_ptr)
    for begin in range(0, PIECE, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        inside = place < size
        gradient = tl.load(gradient_ptr + place, mask=inside, other=0.0).to(tl.float32) * factor
        first = tl.load(first_ptr + place, mask=inside, other=0.0).to(tl.float32) * beta1 + rest1 * gradient
        second = tl.load(second_ptr + place, mask=inside, other=0.0).to(tl.float32) * beta2
        second += rest2 * gradient * gradient
        main = _load_main(main_ptr, other_ptr, place, inside, IS_SPLIT)
        change = (first / correction1) / (tl.sqrt(second / correction2) + eps) + decay * main
        main -= rate * change
        tl.store(first_ptr + place, first.to(FIRST), mask=inside)
        tl.store(second_ptr + place, second.to(SECOND), mask=inside)
        _store_main(main_ptr, other_ptr, place, inside, main, OTHER, IS_SPLIT)


@triton.jit
def _place(column_ptr, origin_ptr, TYPE: tl.constexpr, IS_ALIGNED: tl.constexpr):
    """A pointer from its distance to the origin; the compiler sees that it is a multiple of 16 bytes, as the origin."""
    unit: tl.constexpr = 128 // TYPE.primitive_bitwidth if IS_ALIGNED else 1
    return origin_ptr.to(tl.pointer_type(TYPE)) + tl.load(column_ptr) * unit


@triton.jit
def _load_main(main_ptr, other_ptr, place, inside, IS_SPLIT: tl.constexpr):
    if IS_SPLIT:
        high = tl.load(main_ptr + place, mask=inside, other=0.0).to(tl.int16, bitcast=True).to(tl.int32)
        low = tl.load(other_ptr + place, mask=inside, other=0).to(tl.int32)
        main = (((high - (low < 0).to(tl.int32)) << 16) | (low & 0xFFFF)).to(tl.float32, bitcast=True)
    else:
        main = tl.load(main_ptr + place, mask=inside, other=0.0)
    return main


@triton.jit
def _store_main(main_ptr, other_ptr, place, inside, main, OTHER: tl.constexpr, IS_SPLIT: tl.constexpr):
    if IS_SPLIT:
        bits = main.to(tl.int32, bitcast=True)
        low = (bits << 16) >> 16
        high = ((bits >> 16) + (low < 0).to(tl.int32)).to(tl.int16)
        tl.store(main_ptr + place, high.to(tl.bfloat16, bitcast=True), mask=inside)
        tl.store(other_ptr + place, low.to(tl.int16), mask=inside)
    else:
        tl.store(main_ptr + place, main, mask=inside)
        if OTHER is not None:
            tl.store(other_ptr + place, main.to(OTHER), mask=inside)
