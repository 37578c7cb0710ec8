"""Triton kernels of an adapter in front of SwiGLU: the adapter's sum and the activation in one pass, both ways.

    add_swiglu              y += low B^T, and silu(first half of y) * second half
    gradients_of_add_swiglu y's gradient, and from it, before it leaves the registers, those of low and B

Apart, each would read [N, 2 F] once more: with y in 16 bits, a third of what either pass moves.
Shapes: N tokens, F columns of the result, R rank; y [N, 2 F], low [N, R], B [2 F, R], in 16 bits, sums in float32.
"""

# ruff: noqa: ANN001, ANN202 - what Triton compiles takes pointers, blocks and constants
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from megatron_trainer.lora.kernels import MAX_RANK_OF_UP, blocks, load_low, padded
from megatron_trainer.megatron.patches.swiglu import gradients_of_halves, silu_product
from megatron_trainer.triton_start import start

MAX_RANK = MAX_RANK_OF_UP
# As tall as the tiles of `up` and `gradients_of_up`, so that the sums with low and the gradient of B are the same bits.
_BLOCK_N, _BLOCK_F = 32, 128
_BLOCK_N_BACK, _BLOCK_F_BACK, _PARTS = 64, 64, 16
_OPTIONS_BACK = {"num_warps": 8, "maxnreg": 128}
"""Compiled for an H100 nothing spills at this limit, and two blocks fit on a multiprocessor."""


def add_swiglu(both: Tensor, low: Tensor, b: Tensor) -> Tensor:
    """[N, F]: SwiGLU of both + low B^T; the sum is left in `both` [N, 2 F]. All contiguous."""
    (num_rows, rank), width = low.shape, both.shape[1] // 2
    result = both.new_empty(num_rows, width)
    start(
        _add_swiglu, (blocks(num_rows, _BLOCK_N), blocks(width, _BLOCK_F)), low, b, both, result, num_rows, width, rank,
        constants=(padded(rank), _BLOCK_N, _BLOCK_F),
    )  # fmt: skip
    return result


def gradients_of_add_swiglu(of_result: Tensor, both: Tensor, low: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(of_both [N, 2 F]; of_low [N, R] and of_b [2 F, R] in float32), from the sum that `add_swiglu` left in `both`.

    Parts are summed in a fixed order. R is at most MAX_RANK; all contiguous.
    """
    (num_rows, width), rank = of_result.shape, low.shape[1]
    num_blocks = blocks(width, _BLOCK_F_BACK)
    of_both = torch.empty_like(both)
    low_parts = torch.empty(num_blocks, num_rows, rank, dtype=torch.float32, device=both.device)
    b_parts = torch.empty(_PARTS, 2 * width, rank, dtype=torch.float32, device=both.device)
    start(
        _of_add_swiglu, (num_blocks, _PARTS), of_result, both, low, b, of_both, low_parts, b_parts,
        num_rows, width, rank, constants=(padded(rank), _BLOCK_N_BACK, _BLOCK_F_BACK, _PARTS), **_OPTIONS_BACK,
    )  # fmt: skip
    return of_both, low_parts.sum(0), b_parts.sum(0)


@triton.jit
def _load_b(b_ptr, columns, ranks, end, rank):
    inside = (columns[:, None] < end) & (ranks[None, :] < rank)
    return tl.load(b_ptr + columns[:, None] * rank + ranks[None, :], mask=inside, other=0.0)


@triton.jit
def _summed(both_ptr, place, inside, low, b):
    """both + low B^T of one half, rounded as it is stored."""
    total = tl.dot(low, tl.trans(b)) + tl.load(both_ptr + place, mask=inside, other=0.0).to(tl.float32)
    total = total.to(both_ptr.dtype.element_ty)
    tl.store(both_ptr + place, total, mask=inside)
    return total.to(tl.float32)


@triton.jit
def _add_swiglu(
    low_ptr, b_ptr, both_ptr, result_ptr, num_rows, width, rank,
    R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns, ranks = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F), tl.arange(0, R)
    inside = (rows[:, None] < num_rows) & (columns[None, :] < width)
    low = load_low(low_ptr, rows, ranks, num_rows, rank)
    place = rows[:, None] * 2 * width + columns[None, :]
    first = _summed(both_ptr, place, inside, low, _load_b(b_ptr, columns, ranks, width, rank))
    b_of_second = _load_b(b_ptr + width * rank, columns, ranks, width, rank)
    second = _summed(both_ptr, place + width, inside, low, b_of_second)
    result = silu_product(first, second).to(result_ptr.dtype.element_ty)
    tl.store(result_ptr + rows[:, None] * width + columns[None, :], result, mask=inside)


@triton.jit
def _of_add_swiglu(
    of_result_ptr, both_ptr, low_ptr, b_ptr, of_both_ptr, low_parts_ptr, b_parts_ptr, num_rows, width, rank,
    R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """As `_of_up` with both halves of its columns side by side in one block [BLOCK_N, 2 BLOCK_F]."""
    block_of_columns, part = tl.program_id(0), tl.program_id(1)
    columns, ranks = block_of_columns * BLOCK_F + tl.arange(0, BLOCK_F), tl.arange(0, R)
    side_by_side = tl.arange(0, 2 * BLOCK_F)
    in_half = block_of_columns * BLOCK_F + side_by_side % BLOCK_F
    inside_b = (in_half[:, None] < width) & (ranks[None, :] < rank)
    b_place = (in_half + side_by_side // BLOCK_F * width)[:, None] * rank + ranks[None, :]
    b = tl.load(b_ptr + b_place, mask=inside_b, other=0.0)
    of_b = tl.zeros([2 * BLOCK_F, R], dtype=tl.float32)
    for block in range(part, tl.cdiv(num_rows, BLOCK_N), PARTS):
        rows = tl.cast(block, tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
        of_first, of_second = _of_halves(of_result_ptr, both_ptr, of_both_ptr, rows, columns, num_rows, width)
        of_both = tl.reshape(tl.permute(tl.join(of_first, of_second), (0, 2, 1)), [BLOCK_N, 2 * BLOCK_F])
        of_b = tl.dot(tl.trans(of_both), load_low(low_ptr, rows, ranks, num_rows, rank), of_b)
        place = (tl.cast(block_of_columns, tl.int64) * num_rows + rows[:, None]) * rank + ranks[None, :]
        tl.store(low_parts_ptr + place, tl.dot(of_both, b), mask=(rows[:, None] < num_rows) & (ranks[None, :] < rank))
    tl.store(b_parts_ptr + part * 2 * width * rank + b_place, of_b, mask=inside_b)


@triton.jit
def _of_halves(of_result_ptr, both_ptr, of_both_ptr, rows, columns, num_rows, width):
    """Stores the gradient of both halves and returns it as it is stored."""
    inside = (rows[:, None] < num_rows) & (columns[None, :] < width)
    place = rows[:, None] * 2 * width + columns[None, :]
    first = tl.load(both_ptr + place, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(both_ptr + place + width, mask=inside, other=0.0).to(tl.float32)
    of_result_place = rows[:, None] * width + columns[None, :]
    of_result = tl.load(of_result_ptr + of_result_place, mask=inside, other=0.0).to(tl.float32)
    of_first = tl.zeros(first.shape, dtype=of_both_ptr.dtype.element_ty)
    of_second = of_first
    # One turn, which the compiler cannot know. Without the loop it computes the gradient once for each order in which
    # the products want it in registers, and these do not suffice.
    for _ in range(tl.minimum(num_rows, 1)):
        wide_first, wide_second = gradients_of_halves(of_result, first, second)
        of_first, of_second = wide_first.to(of_first.dtype), wide_second.to(of_second.dtype)
    tl.store(of_both_ptr + place, of_first, mask=inside)
    tl.store(of_both_ptr + place + width, of_second, mask=inside)
    return of_first, of_second
