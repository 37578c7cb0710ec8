"""Load-balancing losses of experts: megatron-core adds them in its routers; here they are collected for the log.

During a step the routers accumulate their values, without coefficients, in megatron-core's tracker.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from megatron.core import parallel_state
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.moe.moe_logging import destroy_moe_metrics_tracker, get_moe_metrics_tracker

_BALANCING = {"aux_loss": "load_balancing_loss", "seq_aux_loss": "seq_load_balancing_loss"}


def names(config: TransformerConfig) -> tuple[str, ...]:
    """Names of the losses that the routers of this model compute; those with coefficient 0 are left out."""
    if not config.num_moe_experts:
        return ()
    balancing = _BALANCING.get(str(config.moe_router_load_balancing_type)) if config.moe_aux_loss_coeff else None
    z_loss = "z_loss" if config.moe_z_loss_coeff else None
    return tuple(name for name in (balancing, z_loss) if name)


def take(config: TransformerConfig, device: torch.device) -> torch.Tensor:
    """This rank's part of the step's losses, float64, one for each name; their sums over all ranks give the means.

    The next step creates a new tracker: another model of this process may have more layers.
    """
    wanted = names(config)
    totals = torch.zeros(len(wanted), dtype=torch.float64, device=device)
    tracker = get_moe_metrics_tracker() if wanted else None
    for index, name in enumerate(wanted):
        if tracker is not None and name in tracker.metrics:
            totals[index] = tracker.metrics[name].values.double().sum() / _num_shares(name)
    if wanted:
        destroy_moe_metrics_tracker()
    return totals


def means(config: TransformerConfig, totals: Sequence[float], num_micro_batches: int) -> dict[str, float]:
    """By name, over layers with experts, micro-batches and ranks. totals: of `take`, over all ranks."""
    wanted = names(config)
    count = _num_expert_layers(config) * num_micro_batches if wanted else 1
    return {name: total / count for name, total in zip(wanted, totals, strict=True)}


def _num_expert_layers(config: TransformerConfig) -> int:
    frequency: int | list[int] = config.moe_layer_freq
    further: int = config.mtp_num_layers or 0
    if isinstance(frequency, int):
        return len(range(0, config.num_layers, frequency)) + further
    return sum(frequency) + (further if frequency[-1] else 0)


def _num_shares(name: str) -> int:
    """Ranks whose values of a layer are averaged: tensor and context ranks hold parts of a balancing loss, which add
    up, but each its own mean of the z-loss.
    """
    holders: int = parallel_state.get_data_parallel_world_size(with_context_parallel=name == "z_loss")
    tensor_ranks: int = parallel_state.get_tensor_model_parallel_world_size()
    return holders * (tensor_ranks if name == "z_loss" else 1)
