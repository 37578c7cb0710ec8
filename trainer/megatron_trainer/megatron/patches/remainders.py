"""A float32 main parameter as its bfloat16 weight and the 16 bits that the weight lacks, as TransformerEngine keeps it.

A float32 number is 16 high and 16 low bits. The low ones, read as a signed number, are the remainder; where it is
negative, the weight is the high half rounded up. So the weight is the nearest bfloat16, and both together lose nothing:

    main 0x3F80_7FFF -> weight 0x3F80, remainder  32767
    main 0x3F80_8001 -> weight 0x3F81, remainder -32767
"""

from __future__ import annotations

import torch
from torch import Tensor

_HALF = -(2**15)
"""The remainder of a number midway between two weights."""


def rebuilt(weight: Tensor, remainder: Tensor) -> Tensor:
    """The float32 numbers of bfloat16 weights and their int16 remainders, bit by bit; all of one shape."""
    high = weight.view(torch.int16).to(torch.int32) - (remainder < 0).to(torch.int32)
    return ((high << 16) | (remainder.to(torch.int32) & 0xFFFF)).view(torch.float32)


def split(main: Tensor, loaded: Tensor) -> tuple[Tensor, Tensor]:
    """(bfloat16 weights, int16 remainders) of float32 numbers; all of one shape.

    loaded: the weights that every rank has. torch rounds a number midway to the even neighbor, TransformerEngine up;
    where the loaded weight is the lower one it stays, and the main parameter becomes the next float32 toward zero.
    """
    bits = main.view(torch.int32)
    high, remainder = bits >> 16, bits.to(torch.int16)
    is_lower = (remainder == _HALF) & (loaded.view(torch.int16) == high.to(torch.int16))
    remainder = torch.where(is_lower, -_HALF - 1, remainder)
    weight = (high + (remainder < 0).to(torch.int32)).to(torch.int16).view(torch.bfloat16)
    return weight, remainder
