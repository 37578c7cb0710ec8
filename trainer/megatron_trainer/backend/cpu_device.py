"""Replacements of the torch.cuda calls that megatron-core makes without checking for a GPU.

Each behaves like a machine whose only device is the CPU and where all work is synchronous.
"""

# ruff: noqa: ANN401 - values of torch and megatron-core that are passed on as they are
from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch

_CPU = torch.device("cpu")


class _Event:
    """An event that has always completed."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def record(self, *_: object) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def wait(self, *_: object) -> None:
        pass

    def query(self) -> bool:
        return True

    def elapsed_time(self, _: object) -> float:
        return 0.0


class _Stream:
    """A stream whose work has always completed."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def wait_stream(self, *_: object) -> None:
        pass

    def wait_event(self, *_: object) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True

    def record_event(self, event: object = None) -> _Event:
        return _Event()

    @staticmethod
    def priority_range() -> tuple[int, int]:
        return 0, 0

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None:
        pass


_THE_STREAM = _Stream()


def _always(value: Any) -> Callable[..., Any]:
    """A new function that accepts any arguments and returns `value`. New, because torch's compiler rejects one function
    under two names of torch.cuda.
    """

    def stand_in(*_: Any, **__: Any) -> Any:
        return value

    return stand_in


def _itself(self: Any, *_: Any, **__: Any) -> Any:
    return self


def _replace(owner: Any, **stand_ins: Any) -> None:
    for name, stand_in in stand_ins.items():
        setattr(owner, name, stand_in)


def install() -> None:
    """Replaces the calls; `torch.cuda.is_available()` stays False, so libraries that check it take their CPU path."""
    replacements: dict[str, Any] = {
        "current_device": _always(_CPU),  # used as `device=`, never as a number
        "device_count": _always(1),
        "is_current_stream_capturing": _always(False),
        "get_device_capability": _always((0, 0)),
        "get_device_name": _always("cpu"),
        "Stream": _Stream,
        "Event": _Event,
        "current_stream": _always(_THE_STREAM),
        "default_stream": _always(_THE_STREAM),
        "stream": lambda _: contextlib.nullcontext(),
        "manual_seed": lambda seed: torch.manual_seed(seed),
        "get_rng_state": lambda *_, **__: torch.get_rng_state(),
        "set_rng_state": lambda state, *_, **__: torch.set_rng_state(state),
    }
    # `_lazy_call` would queue the callback until CUDA is initialized, which never happens.
    effects = ("set_device", "synchronize", "empty_cache", "set_stream", "_lazy_call")
    replacements |= {name: _always(None) for name in effects}
    sizes = ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved")
    replacements |= {name: _always(0) for name in sizes}
    _replace(torch.cuda, **replacements)
    # megatron-core applies torch.compile to its small fusions at import. On a CPU, compiling needs a C++ compiler and
    # takes longer than it saves.
    _replace(torch, compile=lambda model=None, **_: model if model is not None else lambda function: function)
    _replace(torch.nn.Module, cuda=_itself)
    _replace(torch.Tensor, cuda=_itself, pin_memory=_itself)
