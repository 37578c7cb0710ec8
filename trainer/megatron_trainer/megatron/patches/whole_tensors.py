"""Optimizer state that is distributed by whole tensors, in float32 too: megatron-core 0.19 saves it only in
bfloat16.
"""

# ruff: noqa: ANN401 - values of megatron-core that are passed on as they are
from __future__ import annotations

from typing import Any

import torch


def install() -> None:
    """Replaces the class that wraps the parts in the module that uses it."""
    from megatron.core.optimizer import layer_wise_optimizer
    from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params

    class TakesFloat32(Float16OptimizerWithFloat16Params):  # type: ignore[misc]
        """Trains float32 parameters directly; these are saved too, not only the 16-bit ones."""

        float16_groups: list[Any]

        def sharded_state_dict(self, *args: Any, **settings: Any) -> Any:
            if self.config.params_dtype != torch.float32 or self.optimizer is None:
                return super().sharded_state_dict(*args, **settings)
            none: list[Any] = self.float16_groups
            self.float16_groups = self.fp32_from_fp32_groups
            try:
                return super().sharded_state_dict(*args, **settings)
            finally:
                self.float16_groups = none

    layer_wise_optimizer.Float16OptimizerWithFloat16Params = TakesFloat32
    layer_wise_optimizer.LayerWiseDistributedOptimizer.shard_params = _shard_params


def _shard_params(self: Any, optimizers: Any, full_param_layouts: Any = None) -> None:
    """Distributes the parameters wherever dense ones or experts have data-parallel ranks.

    megatron-core leaves experts whole on each rank where only these have such ranks (tensor parallel, whole experts),
    and then saves them from each.
    """
    sizes = (self.dp_cp.size(), self.expt_dp.size())
    if max(sizes) == 1:
        self.dp_cp_params_list = self.expt_dp_params_list = None
    elif full_param_layouts is not None:
        self._shard_params_from_layout(optimizers, full_param_layouts, *sizes)
    else:
        self._shard_params_ping_pong(optimizers, *sizes)
