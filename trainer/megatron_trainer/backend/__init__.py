"""The differences between CPU and GPU: device, collectives, layer implementation, memory and random state.

The only place that distinguishes the two. All other code uses the value that `select` returns.
"""

from __future__ import annotations

import os
from typing import Any, Literal, Protocol

import torch

from megatron_trainer.backend.cpu import CpuBackend
from megatron_trainer.backend.cuda import CudaBackend
from megatron_trainer.failure import TrainingError
from megatron_trainjob.environment import DEVICE
from megatron_trainjob.exit_codes import ExitCode

__all__ = ["Backend", "CpuBackend", "CudaBackend", "fork_loses_gpu", "refuse_missing_gpu", "select"]


class Stopwatch(Protocol):
    """Running from its creation until `stop`."""

    def stop(self) -> None:
        """Marks the end, once the work queued so far is done."""

    def seconds(self) -> float:
        """Between start and stop; waits until the device has got there."""


class Backend(Protocol):
    """The machine as seen by the trainer. Call `install` first, before any model or optimizer is built."""

    @property
    def name(self) -> Literal["cpu", "cuda"]:
        """Name of the backend, for messages and reports only; never for a decision."""

    @property
    def device(self) -> torch.device:
        """Device of tensors; names the GPU once `bind` was called."""

    @property
    def collective(self) -> Literal["gloo", "nccl"]:
        """Backend of torch.distributed."""

    @property
    def layer_impl(self) -> Literal["local", "transformer_engine"]:
        """The implementation of transformer layers that is available on this machine."""

    def fused_kernels(self) -> frozenset[str]:
        """Fused kernels that are available: bias_swiglu, bias_dropout, rope, moe_permute, cross_entropy,
        flash_attention (in TransformerEngine), flash_attention_2 (in transformers), mxfp8.
        """

    def install(self) -> None:
        """Makes megatron-core run on this machine. Idempotent."""

    def bind(self, local_rank: int) -> None:
        """Selects the device of this rank."""

    def set_deterministic(self, enabled: bool) -> None:  # noqa: FBT001 - a switch
        """Enables or disables bitwise reproducible results, which are slower.

        Must be called before the first matrix product and the first collective.
        """

    def num_devices(self) -> int | None:
        """Number of GPUs in this machine, None where processes share the CPU."""

    def synchronize(self) -> None:
        """Waits until all work on the device has finished."""

    def stopwatch(self) -> Stopwatch:
        """Measures time on the device without waiting for it."""

    def peak_memory_bytes(self) -> int:
        """Peak memory of this process: GPU memory, or resident memory."""

    def available_memory_bytes(self) -> int | None:
        """Memory that this process holds on its GPU plus what is free on it; None if there is no such limit."""

    def device_name(self) -> str:
        """The vendor's name of the device."""

    def peak_flops(self, dtype: torch.dtype) -> float | None:
        """The vendor's dense floating-point operations per second in this type, None if unknown."""

    def rng_state(self) -> dict[str, Any]:
        """Every random state of this process: python, numpy, torch, device and megatron-core's named
        states.
        """

    def set_rng_state(self, state: dict[str, Any]) -> None:
        """Restores what `rng_state` returned, even in a process that has not used its generators yet."""


def select() -> Backend:
    """The backend of this machine: its GPUs if it has any, unless MTJ_DEVICE=cpu selects the CPU."""
    if os.environ.get(DEVICE) != "cpu" and torch.cuda.is_available():
        return CudaBackend()
    return CpuBackend()


def refuse_missing_gpu(selected: Backend) -> None:
    """Raises TrainingError where MTJ_DEVICE asks for GPUs and torch has none; a retry may find a node that has."""
    if os.environ.get(DEVICE) == "cuda" and selected.num_devices() is None:
        remedy = "correct the driver or the GPUs that are asked for, or remove it"
        raise TrainingError(ExitCode.ERROR, f"{DEVICE} is cuda, but torch finds no GPU here; {remedy}")


def fork_loses_gpu(backend: Backend) -> bool:
    """Whether this forked process could not use its GPU: the one that it was forked from had initialized CUDA."""
    return isinstance(backend, CudaBackend) and bool(torch.cuda._is_in_bad_fork())
