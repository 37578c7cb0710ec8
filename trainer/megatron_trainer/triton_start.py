"""Starts a Triton kernel in a third of the host's time, once it has run with arguments of the same kind.

Triton looks at every argument of every call to find the compiled kernel. A step with adapters starts thousands of
kernels, whose arguments are those of the layer before.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

_MULTIPLE = 16
"""Triton compiles apart for pointers and whole numbers that are a multiple of it, and for the number 1."""
_WIDE = 2**31

_compiled: dict[tuple[object, ...], Any] = {}


def start(
    kernel: Any,  # noqa: ANN401
    grid: tuple[int, ...],
    *args: object,
    constants: tuple[object, ...],
    **options: int,
) -> None:
    """As kernel[grid](*args, *constants, **options). kernel: what triton.jit makes, for good; constants: its last
    parameters; options: of the compiler, always the same for one kernel.
    """
    key = (id(kernel), constants, *map(_kind, args))
    known = _compiled.get(key)
    if known is not None:
        known[(*grid, 1, 1)[:3]](*args, *constants)
        return
    found = kernel[grid](*args, *constants, **options)
    if found is not None:  # the interpreter compiles nothing
        _compiled[key] = found


def _kind(value: object) -> object:
    """What of an argument a kernel is compiled for."""
    if isinstance(value, Tensor):
        return value.dtype, value.device, value.data_ptr() % _MULTIPLE == 0
    if isinstance(value, int):
        return value == 1, value % _MULTIPLE == 0, value < _WIDE
    return type(value)
