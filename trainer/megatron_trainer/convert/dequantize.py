"""FP8 and MXFP4 weights with scales, read slice by slice and dequantized as transformers does.

A weight [rows, columns] has a grid of scales, one per block:
    per tensor     [], [1] or [1, 1]                    one block
    per channel    [rows, 1]                            a row
    by blocks      [ceil(rows / 128), ceil(columns / 128)]
Only the slices that a rank requests are read and multiplied.

MXFP4, as gpt-oss stores a stack of experts [experts, rows, columns]: bytes [experts, rows, columns / 32, 16], in each
the even column in the lower four bits, and one exponent [experts, rows, columns / 32] for 32 columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_trainer.convert.rules import Source
from megatron_trainjob.quantization import block_sizes

FP8_TYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
_EXPONENT_OF_ONE = 127.0
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
FOUR_BITS = torch.tensor((*_MAGNITUDES, *(-value for value in _MAGNITUDES)))
"""The values of four bits: sign, two of the exponent, one of the fraction (E2M1)."""
PER_BYTE = 2


@dataclass(frozen=True, kw_only=True)
class Dequantized:
    """A weight and its scales as one tensor, dequantized when it is sliced.

    Products are computed in float32 and rounded to `rounded_to` where that is given.
    """

    weight: Source
    scales: Source
    block: tuple[int, int] | None
    rounded_to: torch.dtype | None = None

    @property
    def shape(self) -> Sequence[int]:
        """The shape of the weight."""
        return self.weight.shape

    def __getitem__(self, index: slice | tuple[slice, slice]) -> Tensor:
        """The rows, or rows and columns, of a slice, float32 or `rounded_to`. Raises ValueError for an odd grid."""
        wanted = index if isinstance(index, tuple) else (index, slice(None))
        rows, columns = (range(size)[part] for size, part in zip(self.shape, wanted, strict=True))
        grid = _factors(self.scales[:])
        grid = grid.reshape(-1, 1) if grid.ndim < 2 else grid
        block = block_sizes(self.shape, grid.shape, self.block)
        stored = self.weight[index]
        if stored.dtype not in FP8_TYPES:
            raise ValueError(f"it has scales but is stored as {stored.dtype}")
        values = stored.float()
        by_column = _spread(grid, block[1], columns)
        if block[0] == 1:
            values *= by_column[rows.start : rows.stop]
        else:
            for number in range(rows.start // block[0], -(-rows.stop // block[0]) if rows else 0):
                first, last = max(number * block[0], rows.start), min((number + 1) * block[0], rows.stop)
                values[first - rows.start : last - rows.start] *= by_column[number]
        return values if self.rounded_to is None else values.to(self.rounded_to)


@dataclass(frozen=True, kw_only=True)
class DequantizedBlocks:
    """A stack of matrices in MXFP4 as one tensor [experts, rows, columns], dequantized when it is sliced."""

    blocks: Source
    scales: Source

    @property
    def shape(self) -> Sequence[int]:
        """The shape of the stack."""
        experts, rows, groups, size = self.blocks.shape
        return experts, rows, groups * size * PER_BYTE

    def __getitem__(self, index: slice | tuple[slice, ...]) -> Tensor:
        """A slice, float32: of experts, or of experts and rows, or of experts, rows and columns."""
        experts, rows, columns = (*(index if isinstance(index, tuple) else (index,)), *[slice(None)] * 2)[:3]
        blocks, scales = self.blocks[experts, rows], self.scales[experts, rows]
        if blocks.dtype != torch.uint8 or scales.dtype != torch.uint8:
            raise ValueError(f"blocks and scales are bytes, not {blocks.dtype} and {scales.dtype}")
        pairs = torch.stack((blocks & 15, blocks >> 4), dim=-1).flatten(-2)
        values = FOUR_BITS[pairs.int()]
        whole = torch.ldexp(values, scales.int()[..., None] - int(_EXPONENT_OF_ONE))
        return whole.flatten(-2)[..., columns]


def _factors(scales: Tensor) -> Tensor:
    """Scales as float32; bytes are exponents of two, as MX formats store them."""
    return (scales.float() - _EXPONENT_OF_ONE).exp2() if scales.dtype == torch.uint8 else scales.float()


def _spread(grid: Tensor, width: int, columns: range) -> Tensor:
    """Each row of scales repeated to one scale per column of `columns`; a single one where it covers all columns."""
    if grid.shape[1] == 1:
        return grid
    return grid.repeat_interleave(width, dim=1)[:, columns.start : columns.stop]
