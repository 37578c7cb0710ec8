"""What differs between CPU and GPU: device, collectives, layer implementation, memory and random state.

The only place that knows which of the two it runs on. Everything else asks the value that `select` returns.
"""

from __future__ import annotations

import os
from typing import Any, Literal, Protocol

import torch

from megatron_trainer.backend.cpu import CpuBackend
from megatron_trainer.backend.cuda import CudaBackend
from megatron_trainjob.environment import DEVICE

__all__ = ["Backend", "CpuBackend", "CudaBackend", "select"]


class Backend(Protocol):
    """The machine as the trainer sees it. `install` comes first, before any model or optimizer is built."""

    @property
    def name(self) -> Literal["cpu", "cuda"]:
        """Which of the two it is, for messages and reports; never for a decision."""

    @property
    def device(self) -> torch.device:
        """Where tensors live; names the card once `bind` was called."""

    @property
    def collective(self) -> Literal["gloo", "nccl"]:
        """Backend of torch.distributed."""

    @property
    def layer_impl(self) -> Literal["local", "transformer_engine"]:
        """The implementation of transformer layers that this machine can run."""

    def fused_kernels(self) -> frozenset[str]:
        """Fused kernels that run here: bias_swiglu, bias_dropout, rope, moe_permute, cross_entropy, flash_attention,
        mxfp8.
        """

    def install(self) -> None:
        """Makes megatron-core run here. Idempotent."""

    def bind(self, local_rank: int) -> None:
        """Takes the device of this rank."""

    def set_deterministic(self, enabled: bool) -> None:  # noqa: FBT001 - a switch
        """From now on the same inputs give the same bits, at the price of speed, or no longer.

        Has to come before the first product and the first collective.
        """

    def num_devices(self) -> int | None:
        """Cards in this machine, None where processes share the processor."""

    def synchronize(self) -> None:
        """Returns when everything that was started on the device has ended."""

    def peak_memory_bytes(self) -> int:
        """The most memory this process has held: card memory, or resident memory."""

    def available_memory_bytes(self) -> int | None:
        """What this process holds of its card and what is free on it; None where that bounds nothing."""

    def device_name(self) -> str:
        """The maker's name of the device."""

    def peak_flops(self, dtype: torch.dtype) -> float | None:
        """The maker's dense floating-point operations per second in this type, None when unknown."""

    def rng_state(self) -> dict[str, Any]:
        """Every random state of this process: python, numpy, torch, device and megatron-core's named
        states.
        """

    def set_rng_state(self, state: dict[str, Any]) -> None:
        """Puts back what `rng_state` returned, also on a process that has not drawn yet."""


def select() -> Backend:
    """The backend of this machine: its GPUs when it has any, unless MTJ_DEVICE=cpu asks for the processor."""
    if os.environ.get(DEVICE, "").lower() != "cpu" and torch.cuda.is_available():
        return CudaBackend()
    return CpuBackend()
