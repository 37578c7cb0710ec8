"""The GPU backend: nccl and TransformerEngine layers."""

from __future__ import annotations

import functools
import importlib.util
import os
from dataclasses import dataclass
from typing import Any, Literal

import torch

from megatron_trainer.backend import rng

# Dense tensor-core operations per second from the vendors' data sheets, by the name the driver reports.
# float32 counts as TF32, which torch uses when allowed. The first match wins, so longer names come first.
_PEAK_FLOPS: tuple[tuple[str, dict[torch.dtype, float]], ...] = (
    ("B200", {torch.bfloat16: 2250e12, torch.float16: 2250e12, torch.float32: 1125e12}),
    ("GB200", {torch.bfloat16: 2250e12, torch.float16: 2250e12, torch.float32: 1125e12}),
    ("H100 NVL", {torch.bfloat16: 835e12, torch.float16: 835e12, torch.float32: 417e12}),
    ("H100 PCIe", {torch.bfloat16: 756e12, torch.float16: 756e12, torch.float32: 378e12}),
    ("H100", {torch.bfloat16: 989e12, torch.float16: 989e12, torch.float32: 494e12}),
    ("H200", {torch.bfloat16: 989e12, torch.float16: 989e12, torch.float32: 494e12}),
    ("H800", {torch.bfloat16: 989e12, torch.float16: 989e12, torch.float32: 494e12}),
    ("H20", {torch.bfloat16: 148e12, torch.float16: 148e12, torch.float32: 74e12}),
    ("A100", {torch.bfloat16: 312e12, torch.float16: 312e12, torch.float32: 156e12}),
    ("A800", {torch.bfloat16: 312e12, torch.float16: 312e12, torch.float32: 156e12}),
    ("L40S", {torch.bfloat16: 362e12, torch.float16: 362e12, torch.float32: 183e12}),
    ("A10", {torch.bfloat16: 125e12, torch.float16: 125e12, torch.float32: 62e12}),
)


_HOPPER, _BLACKWELL = (9, 0), (10, 0)

GROUPED_GEMM = "NVTE_USE_CUTLASS_GROUPED_GEMM"
"""Makes TransformerEngine start the products of all experts at once. It asks cuBLAS for each expert's otherwise, which
keeps the host busy for longer than the card; its kernel is for Hopper only.
"""

FLASH_ATTENTION_4 = "NVTE_FLASH_ATTN_V4"
"""Whether TransformerEngine may take flash-attn 4 where it is installed. It may not unless the user says so: on an H200
version 4.0.0b36 returned values that have nothing in common with cuDNN's, without an error
(benchmarks/results/gpu-2026-12-01.md).
"""

# One workspace for cuBLAS, and a fixed order of summation in NCCL.
_REPRODUCIBLE = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NCCL_ALGO": "Ring"}


@dataclass(frozen=True, kw_only=True)
class CudaBackend:
    """Runs on one GPU per process."""

    name: Literal["cpu", "cuda"] = "cuda"
    collective: Literal["gloo", "nccl"] = "nccl"

    @property
    def device(self) -> torch.device:
        """This rank's GPU."""
        return torch.device("cuda", torch.cuda.current_device())

    @property
    def layer_impl(self) -> Literal["local", "transformer_engine"]:
        """TransformerEngine where it is installed, else megatron-core's own layers."""
        from megatron.core.extensions.transformer_engine import HAVE_TE

        return "transformer_engine" if HAVE_TE else "local"

    def fused_kernels(self) -> frozenset[str]:
        """torch.compile provides the bias fusions; the others come with TransformerEngine and flash-attn."""
        return _fused_kernels(self.layer_impl)

    def install(self) -> None:
        """Applies only the patches that are needed on a GPU too."""
        from megatron_trainer.megatron.patches import (
            fused_adam,
            optimizer_shards,
            optimizer_state,
            quiet,
            recomputed_bias,
            sharding_check,
        )

        quiet.install()
        optimizer_state.install()
        fused_adam.install()
        if importlib.util.find_spec("triton"):
            from megatron_trainer.megatron.patches import rotation, swiglu

            rotation.install()
            swiglu.install()
        optimizer_shards.install()
        recomputed_bias.install()
        sharding_check.install()

    def bind(self, local_rank: int) -> None:
        """Selects the GPU with this index, and kernels that suit it; a user's variable takes precedence."""
        torch.cuda.set_device(local_rank)
        os.environ.setdefault(FLASH_ATTENTION_4, "0")
        if torch.cuda.get_device_capability() == _HOPPER:
            os.environ.setdefault(GROUPED_GEMM, "1")

    def set_deterministic(self, enabled: bool) -> None:  # noqa: FBT001 - a switch
        """torch raises for operations that it cannot run reproducibly; its libraries read environment variables."""
        torch.use_deterministic_algorithms(enabled)
        if enabled:
            for name, value in _REPRODUCIBLE.items():
                os.environ.setdefault(name, value)
            os.environ["NVTE_ALLOW_NONDETERMINISTIC_ALGO"] = "0"
        else:
            os.environ.pop("NVTE_ALLOW_NONDETERMINISTIC_ALGO", None)

    def num_devices(self) -> int | None:
        """Number of GPUs visible to this process."""
        return torch.cuda.device_count()

    def synchronize(self) -> None:
        """Waits for the GPU."""
        torch.cuda.synchronize()

    def stopwatch(self) -> EventStopwatch:
        """See Backend."""
        return EventStopwatch()

    def peak_memory_bytes(self) -> int:
        """Peak memory allocated by torch on the GPU."""
        return torch.cuda.max_memory_allocated()

    def available_memory_bytes(self) -> int | None:
        """Memory reserved by torch on the GPU, plus what is free."""
        free, _ = torch.cuda.mem_get_info()
        return free + torch.cuda.memory_reserved()

    def device_name(self) -> str:
        """Name reported by the driver."""
        return torch.cuda.get_device_name()

    def peak_flops(self, dtype: torch.dtype) -> float | None:
        """Data-sheet value of this GPU, None for a GPU that is not in the table."""
        return peak_flops_of(self.device_name(), dtype)

    def rng_state(self) -> dict[str, Any]:
        """Random states of process and GPU."""
        return rng.state(device_state=torch.cuda.get_rng_state())

    def set_rng_state(self, state: dict[str, Any]) -> None:
        """Restores what `rng_state` returned."""
        torch.cuda.set_rng_state(rng.restore(state))


class EventStopwatch:
    """See Stopwatch: two events in the current stream."""

    def __init__(self) -> None:
        self._started, self._stopped = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        self._started.record()

    def stop(self) -> None:
        """See Stopwatch."""
        self._stopped.record()

    def seconds(self) -> float:
        """See Stopwatch."""
        self._stopped.synchronize()
        milliseconds: float = self._started.elapsed_time(self._stopped)
        return milliseconds / 1000


@functools.cache  # what is installed does not change
def _fused_kernels(layer_impl: str) -> frozenset[str]:
    from transformers.utils import is_flash_attn_2_available

    found = {"bias_swiglu", "bias_dropout"}
    if layer_impl == "transformer_engine":
        found |= {"rope", "moe_permute", "cross_entropy"}
        found |= {"mxfp8"} if torch.cuda.get_device_capability() >= _BLACKWELL else set()
        found |= {"flash_attention"} if _can_load_flash_attention() else set()
    found |= {"flash_attention_2"} if is_flash_attn_2_available() else set()
    return frozenset(found)


def _can_load_flash_attention() -> bool:
    """Whether TransformerEngine has loaded flash-attn 2 or 3: it takes certain versions only, and where another is
    asked for, it has no kernel at all. Version 4, which shares the folder of 2, is off (FLASH_ATTENTION_4).
    """
    from transformer_engine.pytorch.attention.dot_product_attention import backends

    return bool(backends.fa_utils.is_installed or backends.fa_utils.v3_is_installed)


def peak_flops_of(device_name: str, dtype: torch.dtype) -> float | None:
    """Dense operations per second of a GPU by the driver's name for it, None if it is not in the table."""
    return next((flops.get(dtype) for part, flops in _PEAK_FLOPS if part in device_name), None)
