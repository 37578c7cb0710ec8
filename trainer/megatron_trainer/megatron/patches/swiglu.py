"""SwiGLU in kernels of its own: what torch.compile makes of megatron-core's backward pass takes 1.7 times as long, and
what it makes of the forward pass takes the host several times as long to start.

y = silu(first) * second, with both side by side in one tensor; the gradient is written side by side too, which the
compiled kernel does element by element, computing both halves for each.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - what Triton compiles takes pointers, blocks and constants
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from megatron_trainer.triton_start import start

_BLOCK = 1024
_TYPES = (torch.bfloat16, torch.float16)


@functools.cache  # once, however often a backend is installed
def install() -> None:
    """Replaces both passes of the function without a bias; it also serves adapters and frozen weights."""
    from megatron.core.fusions.fused_bias_swiglu import SwiGLUFunction

    compiled_forward, compiled = SwiGLUFunction.forward, SwiGLUFunction.backward

    def forward(ctx: Any, both: Tensor, in_fp8: bool, offloads: bool) -> Tensor:  # noqa: ANN401, FBT001 - megatron's
        if in_fp8 or offloads or not fits(both):
            result: Tensor = compiled_forward(ctx, both, in_fp8, offloads)
            return result
        ctx.save_for_backward(both)
        ctx.ori_input_dtype, ctx.fp8_input_store = both.dtype, False
        return product(both)

    def backward(ctx: Any, of_output: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - untyped in torch
        (both,) = ctx.saved_tensors
        if not fits(both) or of_output.dtype != both.dtype:
            result: tuple[Tensor | None, ...] = compiled(ctx, of_output)
            return result
        return gradient(of_output, both), None, None

    SwiGLUFunction.forward, SwiGLUFunction.backward = staticmethod(forward), staticmethod(backward)


def fits(both: Tensor) -> bool:
    """Whether the kernel takes these: 16 bits on a GPU."""
    return both.is_cuda and both.dtype in _TYPES


def product(both: Tensor) -> Tensor:
    """[N, F]: silu(first) * second, computed in float32. both: [N, 2 F]."""
    both = both.contiguous()
    num_rows, width = both.shape[0], both.shape[1] // 2
    result = both.new_empty(num_rows, width)
    start(_swiglu, (num_rows, -(-width // _BLOCK)), both, result, width, constants=(_BLOCK,))
    return result


def gradient(of_output: Tensor, both: Tensor) -> Tensor:
    """[N, 2 F]: the gradient of both halves, computed in float32. of_output: [N, F]; both: [N, 2 F]."""
    of_output, both = of_output.contiguous(), both.contiguous()
    num_rows, width = of_output.shape
    result = torch.empty_like(both)
    start(_swiglu_gradient, (num_rows, -(-width // _BLOCK)), of_output, both, result, width, constants=(_BLOCK,))
    return result


@triton.jit
def silu_product(first, second):
    """SwiGLU of two blocks in float32."""
    return first * tl.sigmoid(first) * second


@triton.jit
def gradients_of_halves(of_output, first, second):
    """(of_first, of_second), all blocks in float32."""
    sigmoid = tl.sigmoid(first)
    silu = first * sigmoid
    return of_output * second * (sigmoid + silu * (1.0 - sigmoid)), of_output * silu


@triton.jit
def _swiglu(both_ptr, result_ptr, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    first_place = row * 2 * width + columns
    first = tl.load(both_ptr + first_place, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(both_ptr + first_place + width, mask=inside, other=0.0).to(tl.float32)
    result = silu_product(first, second)
    tl.store(result_ptr + row * width + columns, result.to(result_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu_gradient(of_output_ptr, both_ptr, result_ptr, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    first_place = row * 2 * width + columns
    first = tl.load(both_ptr + first_place, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(both_ptr + first_place + width, mask=inside, other=0.0).to(tl.float32)
    of_output = tl.load(of_output_ptr + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    of_first, of_second = gradients_of_halves(of_output, first, second)
    element = result_ptr.dtype.element_ty
    tl.store(result_ptr + first_place, of_first.to(element), mask=inside)
    tl.store(result_ptr + first_place + width, of_second.to(element), mask=inside)
