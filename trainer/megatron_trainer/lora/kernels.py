"""Triton kernels of adapters on wide activations: one pass each, with a packed dropout mask.

    down           low = c (x * m) A^T
    gradient_of_a  c low'^T (x * m)
    up             others + m * c (low A)
    gradients_of_up    y' A^T and y'^T low, for y = low A

Shapes: x [N, I] and A [R, I] in 16 bits, low [N, R] and its gradient low' alike, sums in float32. m: one bit per
element, packed by 8 along I, uint8 [N, ceil(I / 8)]; None keeps every element.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - what Triton compiles takes pointers, blocks and constants
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from megatron_trainer.triton_start import start

_DROP_STEPS = 2**16
_PHILOX_ROUNDS = 7  # passes the same randomness tests as ten rounds (Salmon et al. 2011)
_SMALLEST_DOT = 16
# The fastest of those measured on an H100, at widths of 3,584 and 18,944.
_BLOCK_BYTES = 1024
_BLOCK_N, _BLOCK_I = 32, 256
_BLOCK_N_OF_A, _BLOCK_I_OF_A, _PARTS_OF_A = 64, 128, 16
_BLOCK_N_UP, _BLOCK_I_UP = 32, 128
_BLOCK_N_OF_UP, _BLOCK_I_OF_UP, _PARTS_OF_UP = 64, 256, 16
MAX_RANK_OF_UP = 32
"""Of `gradients_of_up`, which holds a block of A and of its gradient in registers."""


def kept_fraction(dropout: float) -> float:
    """The kept fraction of an input, never zero: dropout has a resolution of 2^-16."""
    return 1.0 - _dropped_steps(dropout) / _DROP_STEPS


def _dropped_steps(dropout: float) -> int:
    return min(round(dropout * _DROP_STEPS), _DROP_STEPS - 1)


def packed_mask(x: Tensor, dropout: float, seed: Tensor) -> Tensor:
    """A new random mask for x. seed: int64 [1] on x's device."""
    num_rows, width = x.shape
    mask = torch.empty(num_rows, blocks(width, 8), dtype=torch.uint8, device=x.device)
    grid = (blocks(mask.numel(), _BLOCK_BYTES),)
    start(_pack, grid, seed, mask, mask.numel(), _dropped_steps(dropout), constants=(_BLOCK_BYTES, _PHILOX_ROUNDS))
    return mask


def down(x: Tensor, a: Tensor, mask: Tensor | None, factor: float) -> Tensor:
    """low [N, R] = factor (x * m) A^T."""
    (num_rows, width), rank = x.shape, a.shape[0]
    low = x.new_empty(num_rows, rank)
    start(
        _down, (blocks(num_rows, _BLOCK_N),), x, mask, a, low, num_rows, width, rank, factor,
        constants=(mask is not None, padded(rank), _BLOCK_N, _BLOCK_I),
    )  # fmt: skip
    return low


def gradient_of_a(x: Tensor, of_low: Tensor, mask: Tensor | None, factor: float) -> Tensor:
    """[R, I], float32: factor low'^T (x * m). Parts of the rows are summed in a fixed order."""
    (num_rows, width), rank = x.shape, of_low.shape[1]
    parts = torch.empty(_PARTS_OF_A, rank, width, dtype=torch.float32, device=x.device)
    start(
        _of_a, (blocks(width, _BLOCK_I_OF_A), _PARTS_OF_A), x, mask, of_low, parts, num_rows, width, rank, factor,
        constants=(mask is not None, padded(rank), _BLOCK_N_OF_A, _BLOCK_I_OF_A, _PARTS_OF_A),
    )  # fmt: skip
    return parts.sum(0)


def up(
    low: Tensor, a: Tensor, *, onto: Tensor | None, factor: float = 1.0, mask: Tensor | None = None,
    in_place: bool = False,
) -> Tensor:  # fmt: skip
    """[N, I]: m * factor (low A), added to `onto` [N, I], in place or in new memory. A may be a transposed view."""
    (num_rows, rank), width = low.shape, a.shape[1]
    result = onto if in_place and onto is not None else a.new_empty(num_rows, width)
    grid = (blocks(num_rows, _BLOCK_N_UP), blocks(width, _BLOCK_I_UP))
    start(
        _up, grid, low, mask, a, onto, result, num_rows, width, rank, *a.stride(), factor,
        constants=(mask is not None, onto is not None, padded(rank), _BLOCK_N_UP, _BLOCK_I_UP),
    )  # fmt: skip
    return result


def gradients_of_up(of_y: Tensor, low: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(of_low [N, R], of_b [O, R]), float32, for y = low B^T [N, O], in one pass over its gradient.

    Parts are summed in a fixed order. R is at most MAX_RANK_OF_UP.
    """
    (num_rows, width), rank = of_y.shape, low.shape[1]
    num_blocks = blocks(width, _BLOCK_I_OF_UP)
    low_parts = torch.empty(num_blocks, num_rows, rank, dtype=torch.float32, device=of_y.device)
    b_parts = torch.empty(_PARTS_OF_UP, width, rank, dtype=torch.float32, device=of_y.device)
    start(
        _of_up, (num_blocks, _PARTS_OF_UP), of_y, low, b, low_parts, b_parts, num_rows, width, rank,
        constants=(padded(rank), _BLOCK_N_OF_UP, _BLOCK_I_OF_UP, _PARTS_OF_UP),
    )  # fmt: skip
    return low_parts.sum(0), b_parts.sum(0)


def padded(rank: int) -> int:
    """The ranks that a product in a kernel takes: a power of two that it supports."""
    return max(_SMALLEST_DOT, 1 << (rank - 1).bit_length())


def blocks(size: int, block: int) -> int:
    """As triton.cdiv, which takes several microseconds of the host."""
    return -(-size // block)


@triton.jit
def _pack(seed_ptr, mask_ptr, num_bytes, threshold, BLOCK: tl.constexpr, ROUNDS: tl.constexpr):
    """Draws one byte of the mask: eight 16-bit random numbers from four words of one Philox call."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # 32 bits, which select 32-bit Philox
    word0, word1, word2, word3 = tl.randint4x(tl.load(seed_ptr), place, ROUNDS)
    bits = _two_bits(word0, threshold)
    bits |= _two_bits(word1, threshold) << 2
    bits |= _two_bits(word2, threshold) << 4
    bits |= _two_bits(word3, threshold) << 6
    tl.store(mask_ptr + place, bits.to(tl.uint8), mask=place < num_bytes)


@triton.jit
def _two_bits(word, threshold):
    unsigned = word.to(tl.uint32, bitcast=True)
    low = (unsigned & 0xFFFF).to(tl.int32) >= threshold
    high = (unsigned >> 16).to(tl.int32) >= threshold
    return low.to(tl.int32) | (high.to(tl.int32) << 1)


@triton.jit
def _load_kept(
    x_ptr, mask_ptr, rows, first, num_rows, width,
    HAS_MASK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Loads x * m of these rows and BLOCK_I columns from `first`, zero outside."""
    columns = first + tl.arange(0, BLOCK_I)
    inside = (rows[:, None] < num_rows) & (columns[None, :] < width)
    x = tl.load(x_ptr + rows[:, None] * width + columns[None, :], mask=inside, other=0.0)
    if HAS_MASK:
        x = tl.where(_is_kept(mask_ptr, rows, first, num_rows, width, BLOCK_N, BLOCK_I), x, 0.0)
    return x


@triton.jit
def _is_kept(mask_ptr, rows, first, num_rows, width, BLOCK_N: tl.constexpr, BLOCK_I: tl.constexpr):
    """Each byte is loaded once and expanded to its eight columns; one load per column takes seven times as long."""
    places, num_places = first // 8 + tl.arange(0, BLOCK_I // 8), (width + 7) // 8
    inside = (rows[:, None] < num_rows) & (places[None, :] < num_places)
    packed = tl.load(mask_ptr + rows[:, None] * num_places + places[None, :], mask=inside, other=0).to(tl.int32)
    bits = (packed[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
    return tl.reshape(bits, [BLOCK_N, BLOCK_I]) != 0


@triton.jit
def _load_a(a_ptr, ranks, columns, rank, width, by_rank, by_column):
    inside = (ranks[:, None] < rank) & (columns[None, :] < width)
    return tl.load(a_ptr + ranks[:, None] * by_rank + columns[None, :] * by_column, mask=inside, other=0.0)


@triton.jit
def load_low(low_ptr, rows, ranks, num_rows, rank):
    """These rows of low, zero outside."""
    inside = (rows[:, None] < num_rows) & (ranks[None, :] < rank)
    return tl.load(low_ptr + rows[:, None] * rank + ranks[None, :], mask=inside, other=0.0)


@triton.jit
def _down(
    x_ptr, mask_ptr, a_ptr, low_ptr, num_rows, width, rank, factor,
    HAS_MASK: tl.constexpr, R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    ranks = tl.arange(0, R)
    total = tl.zeros([BLOCK_N, R], dtype=tl.float32)
    for first in range(0, width, BLOCK_I):
        columns = first + tl.arange(0, BLOCK_I)
        x = _load_kept(x_ptr, mask_ptr, rows, first, num_rows, width, HAS_MASK, BLOCK_N, BLOCK_I)
        total = tl.dot(x, tl.trans(_load_a(a_ptr, ranks, columns, rank, width, width, 1)), total)
    inside = (rows[:, None] < num_rows) & (ranks[None, :] < rank)
    low = (total * factor).to(low_ptr.dtype.element_ty)
    tl.store(low_ptr + rows[:, None] * rank + ranks[None, :], low, mask=inside)


@triton.jit
def _of_a(
    x_ptr, mask_ptr, of_low_ptr, parts_ptr, num_rows, width, rank, factor,
    HAS_MASK: tl.constexpr, R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_I: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * BLOCK_I
    columns = first + tl.arange(0, BLOCK_I)
    part = tl.program_id(1)
    ranks = tl.arange(0, R)
    total = tl.zeros([R, BLOCK_I], dtype=tl.float32)
    for block in range(part, tl.cdiv(num_rows, BLOCK_N), PARTS):
        rows = tl.cast(block, tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
        x = _load_kept(x_ptr, mask_ptr, rows, first, num_rows, width, HAS_MASK, BLOCK_N, BLOCK_I)
        total = tl.dot(tl.trans(load_low(of_low_ptr, rows, ranks, num_rows, rank)), x, total)
    inside = (ranks[:, None] < rank) & (columns[None, :] < width)
    place = (part * rank + ranks[:, None]) * width + columns[None, :]
    tl.store(parts_ptr + place, total * factor, mask=inside)


@triton.jit
def _up(
    low_ptr, mask_ptr, a_ptr, others_ptr, result_ptr, num_rows, width, rank, by_rank, by_column, factor,
    HAS_MASK: tl.constexpr, HAS_OTHERS: tl.constexpr, R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(1) * BLOCK_I
    columns = first + tl.arange(0, BLOCK_I)
    ranks = tl.arange(0, R)
    inside = (rows[:, None] < num_rows) & (columns[None, :] < width)
    low = load_low(low_ptr, rows, ranks, num_rows, rank)
    result = tl.dot(low, _load_a(a_ptr, ranks, columns, rank, width, by_rank, by_column)) * factor
    if HAS_MASK:
        result = tl.where(_is_kept(mask_ptr, rows, first, num_rows, width, BLOCK_N, BLOCK_I), result, 0.0)
    place = rows[:, None] * width + columns[None, :]
    if HAS_OTHERS:
        result += tl.load(others_ptr + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(result_ptr + place, result.to(result_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _of_up(
    of_y_ptr, low_ptr, b_ptr, low_parts_ptr, b_parts_ptr, num_rows, width, rank,
    R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_I: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    block_of_columns, part = tl.program_id(0), tl.program_id(1)
    columns, ranks = block_of_columns * BLOCK_I + tl.arange(0, BLOCK_I), tl.arange(0, R)
    inside_b = (columns[:, None] < width) & (ranks[None, :] < rank)
    b = tl.load(b_ptr + columns[:, None] * rank + ranks[None, :], mask=inside_b, other=0.0)
    of_b = tl.zeros([BLOCK_I, R], dtype=tl.float32)
    for block in range(part, tl.cdiv(num_rows, BLOCK_N), PARTS):
        rows = tl.cast(block, tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
        inside = (rows[:, None] < num_rows) & (columns[None, :] < width)
        of_y = tl.load(of_y_ptr + rows[:, None] * width + columns[None, :], mask=inside, other=0.0)
        of_b = tl.dot(tl.trans(of_y), load_low(low_ptr, rows, ranks, num_rows, rank), of_b)
        place = (tl.cast(block_of_columns, tl.int64) * num_rows + rows[:, None]) * rank + ranks[None, :]
        tl.store(low_parts_ptr + place, tl.dot(of_y, b), mask=(rows[:, None] < num_rows) & (ranks[None, :] < rank))
    tl.store(b_parts_ptr + (part * width + columns[:, None]) * rank + ranks[None, :], of_b, mask=inside_b)
