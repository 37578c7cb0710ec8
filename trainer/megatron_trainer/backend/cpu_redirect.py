"""Redirects tensor creation on "cuda" to the CPU, for the lifetime of the process.

A TorchFunctionMode, because replacing torch.tensor and friends is wrong: transformers' own device context
recognizes those functions by identity and would silently leave garbage in rotary tables.
"""

# ruff: noqa: ANN401 - values of torch and megatron-core that are passed on as they are
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_CPU = torch.device("cpu")


def _here(value: Any) -> Any:
    if isinstance(value, str):
        return "cpu" if value.startswith("cuda") else value
    if isinstance(value, torch.device) and value.type == "cuda":
        return _CPU
    return value


class _CudaIsCpu(TorchFunctionMode):
    """Replaces `cuda` by `cpu` in every call, and drops pinned memory, which requires a GPU."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if kwargs:
            kwargs = {name: _here(value) if name == "device" else value for name, value in kwargs.items()}
            if kwargs.get("pin_memory"):
                kwargs["pin_memory"] = False
        if func is torch.Tensor.to:
            args = tuple(map(_here, args))
        result = func(*args, **(kwargs or {}))
        if func is torch.Tensor.type and isinstance(result, str):
            # The optimizer recognizes float32 parameters by the name "torch.cuda.FloatTensor" and rejects any other.
            return result.replace("torch.", "torch.cuda.", 1)
        return result


_mode = _CudaIsCpu()


def install() -> None:
    """Enters the mode in this thread and never leaves it."""
    mode: AbstractContextManager[object] = _mode
    mode.__enter__()
