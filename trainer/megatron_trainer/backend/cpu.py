"""The CPU backend: gloo and megatron-core's local layers. `install` is a list of patches, one file per subject.

megatron-core calls torch.cuda throughout, so a machine without a GPU needs stand-ins for those calls.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from megatron_trainer.backend import rng

_PROCESS_STATUS = Path("/proc/self/status")
_PROCESSORS = Path("/proc/cpuinfo")

_installed = False


@dataclass(frozen=True, kw_only=True)
class CpuBackend:
    """Runs everything on the CPU."""

    name: Literal["cpu", "cuda"] = "cpu"
    device: torch.device = torch.device("cpu")
    collective: Literal["gloo", "nccl"] = "gloo"
    layer_impl: Literal["local", "transformer_engine"] = "local"

    def fused_kernels(self) -> frozenset[str]:
        """None: they are written for GPUs."""
        return frozenset()

    def install(self) -> None:
        """Replaces torch.cuda and patches megatron-core for the whole process, once."""
        global _installed
        if _installed:
            return
        _hide_gpu_libraries()
        # megatron-core compiles its small fused functions at the first step: 20 s without any benefit on a CPU.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        from megatron_trainer.backend import cpu_collectives, cpu_device, cpu_products, cpu_redirect

        cpu_device.install()
        cpu_redirect.install()
        cpu_products.install()
        cpu_collectives.install()
        # These import megatron-core, which imports several names from torch.cuda.
        from megatron_trainer.megatron.patches import (
            on_cpu,
            optimizer_shards,
            optimizer_state,
            quiet,
            recomputed_bias,
            sharding_check,
        )

        quiet.install()
        on_cpu.install()
        optimizer_state.install()
        optimizer_shards.install()
        recomputed_bias.install()
        sharding_check.install()
        _installed = True

    def bind(self, local_rank: int) -> None:
        """Does nothing: processes share the CPU."""

    def set_deterministic(self, enabled: bool) -> None:  # noqa: FBT001 - a switch
        """torch raises for operations that it cannot run reproducibly."""
        torch.use_deterministic_algorithms(enabled)

    def num_devices(self) -> int | None:
        """None: the number of processes is the user's choice."""
        return None

    def synchronize(self) -> None:
        """Does nothing: work on the CPU is synchronous."""

    def stopwatch(self) -> HostStopwatch:
        """See Backend."""
        return HostStopwatch()

    def peak_memory_bytes(self) -> int:
        """Peak resident memory (VmHWM) of this process; 0 if the system does not report it."""
        return _status_kib("VmHWM") * 1024

    def available_memory_bytes(self) -> int | None:
        """None: the machine's memory is shared, and the kernel kills processes that exceed it."""
        return None

    def device_name(self) -> str:
        """The processor's model name."""
        try:
            lines = _PROCESSORS.read_text().splitlines()
        except OSError:
            return "CPU"
        return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")

    def peak_flops(self, dtype: torch.dtype) -> float | None:
        """None: a CPU's peak depends on clocks and units that it does not report."""
        return None

    def rng_state(self) -> dict[str, Any]:
        """Random states; the device's generator is torch's own."""
        return rng.state(device_state=torch.get_rng_state())

    def set_rng_state(self, state: dict[str, Any]) -> None:
        """Restores what `rng_state` returned."""
        torch.set_rng_state(rng.restore(state))


class HostStopwatch:
    """See Stopwatch."""

    def __init__(self) -> None:
        self._started = self._stopped = time.monotonic()

    def stop(self) -> None:
        """See Stopwatch."""
        self._stopped = time.monotonic()

    def seconds(self) -> float:
        """See Stopwatch."""
        return self._stopped - self._started


def _hide_gpu_libraries() -> None:
    """Hides TransformerEngine and Apex from megatron-core: their kernels need a GPU.

    Relevant on a GPU machine that is configured to run on its CPU.
    """
    for name in ("transformer_engine", "transformer_engine_torch", "apex"):
        if name not in sys.modules:
            sys.modules[name] = None  # type: ignore[assignment]


def _status_kib(field: str) -> int:
    try:
        lines = _PROCESS_STATUS.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(field + ":")), 0)
