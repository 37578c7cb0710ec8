"""Corrections of megatron-core 0.19 for a machine without a GPU. Importing this imports megatron-core.

Each function replaces one thing and gives the reason. For the optimizer, see optimizer_state.
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
    """Named random states fork torch's own generator: on a CPU, dropout uses no other generator.

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
    """The FP8 state that recomputation requests from TransformerEngine."""

    @staticmethod
    def is_fp8_enabled() -> bool:
        return False


def _recompute_without_fp8() -> None:
    """Recomputing single modules (layernorm) reads the FP8 state, under names that exist only with TE."""
    from megatron.core.tensor_parallel import random

    random.FP8GlobalStateManager = _NoFp8
    random.activation_recompute_forward = lambda **_: contextlib.nullcontext()
    random.fp8_autocast = lambda **_: contextlib.nullcontext()


def _restore_outputs_by_copy() -> None:
    """Copies a recomputed output back into the storage that was released for it.

    megatron-core makes the two tensors share memory through a C++ extension, compiled in the first backward pass: that
    takes half a minute and a compiler. Both ways bypass autograd, which must see an unchanged tensor.
    """
    from megatron.core.tensor_parallel import random

    def restore(output: torch.Tensor, recomputed: torch.Tensor) -> None:
        memory, source = output.untyped_storage(), recomputed.untyped_storage()
        memory.resize_(source.nbytes())
        memory.copy_(source)

    random._get_share_storage = lambda: restore
