"""Rotary frequencies: taken from transformers' own initialization, so that every scaling type is the model's.

megatron-core hard-codes Llama 3's constants and YaRN's, and lacks some types.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from torch.distributed import ProcessGroup
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from megatron_trainjob.families.model import Model


def frequencies(model: Model, hf_config: Any) -> tuple[torch.Tensor, float]:  # noqa: ANN401 - differs by family
    """(inverse frequencies, float32[rotated channels / 2]; the factor on cosine and sine).

    hf_config: the model's transformers configuration.
    """
    kind = model.rotary.kind
    if kind == "default":
        return _unscaled(model), 1.0
    config = copy(hf_config)
    if getattr(config, "head_dim", 0) is None:  # some RoPE types use it directly and cannot take None
        config.head_dim = model.qk_head_size
    inverse, factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    return inverse.float(), float(factor)


def _unscaled(model: Model) -> torch.Tensor:
    head = model.qk_rope_size or model.qk_head_size
    rotated = int(head * model.rotary.share)
    exponents = torch.arange(0, rotated, 2, dtype=torch.float32, device="cpu") / rotated
    return torch.as_tensor(1.0 / model.rotary.base**exponents)


class ScaledRotaryEmbedding(RotaryEmbedding):  # type: ignore[misc]  # megatron-core has no types
    """Fixed frequencies and a factor on cosine and sine, with the interface that latent attention expects of YaRN."""

    inv_freq: torch.Tensor

    def __init__(self, model: Model, inverse: torch.Tensor, factor: float, cp_group: ProcessGroup) -> None:
        super().__init__(model.qk_rope_size, rotary_percent=1.0, rotary_base=model.rotary.base, cp_group=cp_group)
        self.inv_freq = inverse.to(self.inv_freq.device)
        self.factor = factor

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, float]:  # noqa: ANN401 - megatron's signature
        """(angles [tokens, 1, 1, channels], the factor)."""
        return super().forward(*args, **kwargs), self.factor
