"""Gated feed-forward blocks with an adapter on their first linear: its term is added in the kernel of SwiGLU.

Only the forward pass here asks that linear for its output and the adapter's low-rank product apart, and it adds them in
the next line: whoever else calls the linear gets the sum, so that no term is lost.
Shapes: F columns between the linears, R rank.
"""

# ruff: noqa: ANN401 - megatron-core's modules and the context of an autograd function are untyped
from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from megatron.core.fusions.fused_bias_swiglu import bias_swiglu_impl
from megatron.core.transformer.mlp import MLP
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from megatron_trainer.lora import fused
from megatron_trainer.lora.adapter import adapter_of
from megatron_trainer.lora.layer import LinearAdapter

FIRST_LINEAR = "linear_fc1"


def fuse_activations(modules: Mapping[str, torch.nn.Module], adapted: Iterable[str]) -> None:
    """Fuses the blocks among `modules` whose first linear has an adapter. adapted: names of the modules with one."""
    for name in adapted:
        owner, _, own_name = name.rpartition(".")
        if own_name == FIRST_LINEAR and owner in modules and _is_swiglu(modules[owner]):
            fuse_activation(modules[owner])


def fuse_activation(mlp: torch.nn.Module) -> None:
    """Makes this block add the term of its first linear's adapter while it computes SwiGLU."""
    assert isinstance(adapter_of(mlp.get_submodule(FIRST_LINEAR)), LinearAdapter)
    mlp.__class__ = _fused_class()


def fits(y: Tensor, low: Tensor, b: Tensor) -> bool:
    """Whether the kernels take these: on a GPU, in the 16 bits of low, whose gradient and B's fit in registers."""
    from megatron_trainer.lora.gated_kernels import MAX_RANK

    return y.is_cuda and y.dtype == low.dtype == b.dtype and y.is_contiguous() and b.shape[1] <= MAX_RANK


def add_swiglu(y: Tensor, low: Tensor, b: Tensor) -> Tensor:
    """SwiGLU of y + low B^T [..., F]. y [..., 2 F] is overwritten: contiguous, not saved for a gradient."""
    result: Tensor = _AddSwiGLU.apply(y, low, b)
    return result


def _is_swiglu(mlp: torch.nn.Module) -> bool:
    """Whether MLP.forward would call SwiGLU without a bias, and keep what it saves on the GPU as it is.

    Subclasses, among them shared experts, have forward passes of their own.
    """
    if type(mlp) is not MLP:
        return False
    config: Any = mlp.config
    plain = config.bias_activation_fusion and not config.use_te_activation_func and not config.add_bias_linear
    moves = config.activation_func_fp8_input_store or config.cpu_offloading
    return bool(plain and config.gated_linear_unit and mlp.activation_func is torch.nn.functional.silu and not moves)


@functools.cache
def _fused_class() -> type:
    base: Any = MLP

    def forward(self: Any, hidden_states: Tensor, per_token_scale: Tensor | None = None, **kwargs: Any) -> Any:
        if per_token_scale is not None:
            return base.forward(self, hidden_states, per_token_scale, **kwargs)
        (y, low), bias = self.linear_fc1(hidden_states, apart=True)
        return self.linear_fc2(_activated(y, low, bias, adapter_of(self.linear_fc1)))

    return type("SwiGLUWithAdapter", (base,), {"forward": forward})


def _activated(y: Tensor, low: Tensor | None, bias: Tensor | None, adapter: Any) -> Tensor:
    """low: None if y is the sum already."""
    if low is not None and bias is None and fits(y, low, adapter.B):
        return add_swiglu(y, low, adapter.B)
    total = y if low is None else fused.add_up(y, low, adapter.B)
    result: Tensor = bias_swiglu_impl(total, bias)
    return result


class _AddSwiGLU(Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, low: Tensor, b: Tensor) -> Tensor:
        from megatron_trainer.lora import gated_kernels

        both = y.detach().view(-1, y.shape[-1])
        low_NR = low.reshape(-1, low.shape[-1]).contiguous()
        result = gated_kernels.add_swiglu(both, low_NR, b.contiguous())
        ctx.save_for_backward(both, low_NR, b)
        ctx.low_shape = low.shape
        return result.view(*y.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_result: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        from megatron_trainer.lora import gated_kernels

        both, low_NR, b = ctx.saved_tensors
        rows_NF = of_result.reshape(-1, of_result.shape[-1]).contiguous()
        of_both, sums_NR, of_b = gated_kernels.gradients_of_add_swiglu(rows_NF, both, low_NR, b.contiguous())
        of_low = sums_NR.to(low_NR.dtype).view(ctx.low_shape)
        return of_both.view(*of_result.shape[:-1], -1), of_low, of_b.to(b.dtype)
