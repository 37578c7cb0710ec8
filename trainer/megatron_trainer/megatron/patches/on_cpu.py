"""Corrections of megatron-core 0.19 for a machine without a GPU. Importing this imports megatron-core.

Each function replaces one thing and says why. Where the optimizer is concerned, see adam_step.
"""

# ruff: noqa: ANN401 - values of torch and megatron-core that are passed on as they are
from __future__ import annotations

import contextlib
from typing import Any

import torch


def install() -> None:
    """All corrections."""
    _use_torch_generator()
    _count_tokens_on_host()
    _recompute_without_fp8()
    _restore_outputs_by_copy()


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


class _NoFp8:
    """What recomputation asks TransformerEngine about FP8."""

    @staticmethod
    def is_fp8_enabled() -> bool:
        return False


def _recompute_without_fp8() -> None:
    """Recomputing single modules (layernorm) asks for the state of FP8, under names that only exist with TE."""
    from megatron.core.tensor_parallel import random

    random.FP8GlobalStateManager = _NoFp8
    random.activation_recompute_forward = lambda **_: contextlib.nullcontext()
    random.fp8_autocast = lambda **_: contextlib.nullcontext()


def _restore_outputs_by_copy() -> None:
    """A recomputed output is copied back into the memory that was given up for it.

    megatron-core lets the two tensors share memory through a C++ extension that it compiles in the first backward
    pass: half a minute, and a compiler. Either way works below autograd, which has to see an unchanged tensor.
    """
    from megatron.core.tensor_parallel import random

    def restore(output: torch.Tensor, recomputed: torch.Tensor) -> None:
        memory, source = output.untyped_storage(), recomputed.untyped_storage()
        memory.resize_(source.nbytes())
        memory.copy_(source)

    random._get_share_storage = lambda: restore
