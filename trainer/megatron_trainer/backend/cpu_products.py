"""Products in bfloat16 on processors that have no instructions for them.

Without AVX-512 torch multiplies bfloat16 matrices in a plain loop, 6 to 30 times slower than in float32: training
SmolLM2-135M takes an hour instead of minutes. Here the operands become float32 and the result is rounded, as in that
loop, which sums in float32, too. As kernels of the dispatcher they are also those of backward passes.
"""

# ruff: noqa: ANN401 - values of torch that are passed on as they are
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

SLOW = ("DEFAULT", "AVX2")
"""Capabilities, as torch names them, under which oneDNN has no product in bfloat16."""
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")

_torch_library: Any = torch.library  # parts of it have no types
_library: Any = None


def install() -> None:
    """Replaces torch's kernels for the lifetime of the process, where the processor is one of those."""
    if torch.backends.cpu.get_cpu_capability() in SLOW:
        replace()


def replace() -> None:
    """Replaces torch's kernels, once."""
    global _library
    if _library is not None:
        return
    _library = _torch_library.Library("aten", "IMPL")
    for name in PRODUCTS:
        product = getattr(torch.ops.aten, name).default
        kernel = _in_float32(_torch_library.get_kernel(product, "CPU"))
        _library.impl(product, kernel, "CPU", with_keyset=True, allow_override=True)


def _in_float32(own: Any) -> Callable[..., Any]:
    """Torch's kernel, whose operands and result are float32 where they are bfloat16."""

    def kernel(keyset: Any, first: torch.Tensor, *rest: Any, **settings: Any) -> Any:
        if first.dtype is not torch.bfloat16:
            return own.call_boxed(keyset, first, *rest, **settings)
        operands = (each.float() if isinstance(each, torch.Tensor) else each for each in (first, *rest))
        return own.call_boxed(keyset, *operands, **settings).to(torch.bfloat16)

    return kernel
