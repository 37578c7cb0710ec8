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
