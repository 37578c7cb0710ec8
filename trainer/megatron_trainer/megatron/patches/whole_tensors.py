"""Optimizer state that is spread by whole tensors, in float32 too: megatron-core 0.19 saves it in bfloat16 alone."""

# ruff: noqa: ANN401 - values of megatron-core that are passed on as they are
from __future__ import annotations

from typing import Any

import torch


def install() -> None:
    """Replaces the class that wraps the parts, where it is used."""
    from megatron.core.optimizer import layer_wise_optimizer
    from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params

    class TakesFloat32(Float16OptimizerWithFloat16Params):  # type: ignore[misc]
        """Trains float32 parameters as they are; these also stand for what is saved, and not the 16-bit ones alone."""

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
