"""The check that the shards of all ranks cover each tensor once: its verdict reaches all ranks, not the first alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from megatron.core.dist_checkpointing import state_dict_utils, validation
from megatron.core.dist_checkpointing.core import CheckpointingException

Check = Callable[..., None]


class WrongShards(CheckpointingException):  # type: ignore[misc]  # megatron-core has no types
    """The shards do not fit together. Raised on all ranks, with the words of the first."""


def on_all_ranks(check: Check) -> Check:
    """The check with its verdict raised on all ranks: megatron-core raises on the first, and the others wait for it."""

    def checked(global_metadata: Any, common_state_dict: Any = None) -> None:  # noqa: ANN401 - of megatron-core
        problem = [""]
        try:
            check(global_metadata, common_state_dict)
        except CheckpointingException as err:
            problem = [f"rank {dist.get_rank()}: {err}"]
        dist.broadcast_object_list(problem, src=0)
        if problem[0]:
            raise WrongShards(problem[0])

    return checked


def install() -> None:
    """Replaces the function in the modules that call it, for saves and for loads."""
    state_dict_utils.validate_sharding_integrity = on_all_ranks(validation.validate_sharding_integrity)
    validation.validate_sharding_integrity = state_dict_utils.validate_sharding_integrity
