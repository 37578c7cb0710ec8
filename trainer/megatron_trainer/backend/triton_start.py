"""Starts a Triton kernel in a third of the host's time, once it has run with arguments of the same kind.

Triton looks at every argument of every call to find the compiled kernel. A step with adapters starts thousands of
kernels, whose arguments are those of the layer before.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

_ALIGNMENT = 16
"""Triton compiles for pointers that are a multiple of it, or not."""

_compiled: dict[tuple[object, ...], Any] = {}


def start(kernel: Any, grid: tuple[int, ...], *args: object) -> None:  # noqa: ANN401 - what triton.jit makes
    """As kernel[grid](*args), all arguments by place, constants too; what it is compiled for must not change."""
    key = (id(kernel), *map(_kind, args))
    known = _compiled.get(key)
    if known is not None:
        known[(*grid, 1, 1)[:3]](*args)
        return
    found = kernel[grid](*args)
    if found is not None:  # the interpreter compiles nothing
        _compiled[key] = found


def _kind(value: object) -> object:
    """What a kernel is compiled for: types and alignment of tensors, the value of whole numbers, but of no others."""
    if isinstance(value, Tensor):
        return value.dtype, value.device, value.data_ptr() % _ALIGNMENT == 0
    return float if isinstance(value, float) else value
