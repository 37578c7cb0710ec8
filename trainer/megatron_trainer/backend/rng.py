"""Random state of a process, as one dictionary that can be saved and restored. The device's own part is
passed in.
"""

# ruff: noqa: ANN401 - values of torch and megatron-core that are passed on as they are
from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def state(*, device_state: torch.Tensor) -> dict[str, Any]:
    """Copies of every state: python, numpy, torch, device, and megatron-core's named states ("tracker")."""
    from megatron.core import tensor_parallel

    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "device": device_state.clone(),
        "tracker": {name: _copy(value) for name, value in _tracker(tensor_parallel).get_states().items()},
    }


def restore(saved: dict[str, Any]) -> torch.Tensor:
    """Restores all but the device's own state, which is returned for the backend to set."""
    from megatron.core import tensor_parallel

    random.setstate(saved["python"])
    np.random.set_state(saved["numpy"])
    torch.set_rng_state(saved["torch"])
    _tracker(tensor_parallel).set_states({name: _copy(value) for name, value in saved["tracker"].items()})
    device_state: torch.Tensor = saved["device"]
    return device_state


def _tracker(tensor_parallel: Any) -> Any:
    return tensor_parallel.get_cuda_rng_tracker()


def _copy(value: Any) -> Any:
    return value.clone() if torch.is_tensor(value) else value
