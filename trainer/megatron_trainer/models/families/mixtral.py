"""Mixtral: every layer a mixture of experts, softmax over the chosen ones."""

from __future__ import annotations

from typing import Any

from megatron_trainer.models.experts import routed_settings, softmax_router
from megatron_trainer.models.family import Family, HfConfig
from megatron_trainer.models.weights import experts, router

_BLOCK = "block_sparse_moe."


def _settings(config: HfConfig) -> dict[str, Any]:
    moe_layers = [1] * config.num_hidden_layers
    return {
        **routed_settings(config, num_experts=config.num_local_experts, moe_layers=moe_layers),
        **softmax_router(normalise_after_choice=True),
    }


MIXTRAL = Family(
    model_type="mixtral",
    settings=_settings,
    weights=(*router(_BLOCK), *experts(_BLOCK, gate="w1", up="w3", down="w2")),
)
