"""Corrections of megatron-core 0.19 for a machine without a GPU. Importing this imports megatron-core.

Each function replaces one thing and says why. Where the optimizer is concerned, see adam_step.
"""

# ruff: noqa: ANN401 - values of torch and megatron-core that are passed on as they are
from __future__ import annotations

from typing import Any

import torch


def install() -> None:
    """All corrections."""
    _use_torch_generator()
    _count_tokens_on_host()


def _use_torch_generator() -> None:
    """Named random states fork torch's own generator: on the processor dropout draws from nothing else.

    megatron-core's two functions reach into the CUDA generators, which do not exist here.
    """
    from megatron.core.tensor_parallel import random

    random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)


def _count_tokens_on_host() -> None:
    """Token counts of the all-to-all dispatcher become numpy arrays, as later code calls `.tolist()` on
    them.

    megatron-core converts only tensors that lie on a GPU. The name is replaced where it is used: the
    dispatcher imported it by value.
    """
    from megatron.core.transformer.moe import token_dispatcher

    def on_host(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:  # noqa: FBT001
        return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor

    token_dispatcher.maybe_move_tensor_to_cpu = on_host
