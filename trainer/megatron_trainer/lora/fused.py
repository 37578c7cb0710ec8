"""An adapter's two GEMMs on a GPU, without writing an extra activation of the layer's width for the adapter.

`branch` reads the input once for A and, in the backward pass, adds A's part to the layer's own input gradient; `add_up`
accumulates the product with B into the layer's output. Dropout takes one bit per element, drawn once and kept for the
backward pass.
Shapes: N tokens, I inputs, O outputs, R rank.
"""

# ruff: noqa: ANN401 - the context of an autograd function is untyped in torch
from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

_HAS_TRITON = importlib.util.find_spec("triton") is not None
_TYPES = (torch.bfloat16, torch.float16)
_MAX_RANK = 128
"""Wider GEMMs saturate the GPU by themselves."""


def fits(x: Tensor, a: Tensor) -> bool:
    """Whether the kernels support these: 16 bits on a GPU, and A [R, I] so narrow that reading x dominates the cost."""
    return _HAS_TRITON and x.is_cuda and x.dtype in _TYPES and a.dtype == x.dtype and a.shape[0] <= _MAX_RANK


def branch(x: Tensor, a: Tensor, *, scale: float, dropout: float) -> tuple[Tensor, Tensor]:
    """(x for the layer, scale * dropout(x) A^T [..., R]). x: [..., I].

    The layer must use the returned x: its gradient is then computed together with A's in one pass. The mask is drawn
    from the current device's generator.
    """
    seed = torch.randint(2**31 - 1, (1,), device=x.device) if dropout else None
    passed, low = _Branch.apply(x, a, seed, scale, dropout)
    return passed, low


def add_up(y: Tensor, low: Tensor, b: Tensor) -> Tensor:
    """y + low B^T, in place in y. y: [..., O], contiguous, not saved for a gradient; low: [..., R]; b: [O, R]."""
    result: Tensor = _AddUp.apply(y, low, b)
    return result


class _Branch(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, a: Tensor, seed: Tensor | None, scale: float, dropout: float
    ) -> tuple[Tensor, Tensor]:
        from megatron_trainer.lora import kernels

        rows_NI = x.reshape(-1, x.shape[-1]).contiguous()
        mask = None if seed is None else kernels.packed_mask(rows_NI, dropout, seed)
        ctx.factor = scale if seed is None else scale / kernels.kept_fraction(dropout)
        ctx.save_for_backward(rows_NI, a, mask)
        ctx.set_materialize_grads(False)
        low_NR = kernels.down(rows_NI, a, mask, ctx.factor)
        return x.view_as(x), low_NR.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_passed: Tensor | None, of_low: Tensor | None) -> tuple[Tensor | None, ...]:
        from megatron_trainer.lora import kernels

        if of_low is None:
            return of_passed, None, None, None, None
        rows_NI, a, mask = ctx.saved_tensors
        of_low_NR = of_low.reshape(-1, a.shape[0]).contiguous()
        of_x = of_a = None
        if ctx.needs_input_grad[1]:
            of_a = kernels.gradient_of_a(rows_NI, of_low_NR, mask, ctx.factor).to(a.dtype)
        if ctx.needs_input_grad[0]:
            others = None if of_passed is None else of_passed.reshape(rows_NI.shape).contiguous()
            shape = (*of_low.shape[:-1], rows_NI.shape[-1])
            of_x = kernels.up(of_low_NR, a, onto=others, factor=ctx.factor, mask=mask).view(shape)
        return of_x, of_a, None, None, None


class _AddUp(Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, low: Tensor, b: Tensor) -> Tensor:
        from megatron_trainer.lora import kernels

        ctx.save_for_backward(low, b)
        result = y.detach()
        rows_NO, low_NR = result.view(-1, result.shape[-1]), low.reshape(-1, low.shape[-1]).contiguous()
        kernels.up(low_NR, b.t(), onto=rows_NO, in_place=True)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_y: Tensor) -> tuple[Tensor | None, ...]:
        from megatron_trainer.lora import kernels

        low, b = ctx.saved_tensors
        rows_NO, low_NR = of_y.reshape(-1, of_y.shape[-1]), low.reshape(-1, low.shape[-1])
        if all(ctx.needs_input_grad[1:]) and b.shape[1] <= kernels.MAX_RANK_OF_UP:
            sums_NR, sums_OR = kernels.gradients_of_up(rows_NO.contiguous(), low_NR.contiguous(), b.contiguous())
            return of_y, sums_NR.to(low.dtype).view(low.shape), sums_OR.to(b.dtype)
        of_low = (rows_NO @ b).view(low.shape) if ctx.needs_input_grad[1] else None
        of_b = rows_NO.t() @ low_NR if ctx.needs_input_grad[2] else None
        return of_y, of_low, of_b
