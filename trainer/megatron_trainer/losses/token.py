"""Token losses of pre-training and supervised fine-tuning, and how they are normalized.

Shape suffixes: B batch (1 when rows are packed), T tokens of this rank.
"""

from __future__ import annotations

import torch
from torch import Tensor


def dynamic_fine_tuning(losses_BT: Tensor) -> Tensor:
    """Each token's cross entropy times its own probability, the latter without gradient.

    losses_BT: cross entropy in nats, float32. Source: Wu et al. 2025, arXiv 2508.05629, eq. 9.
    """
    return losses_BT * torch.exp(-losses_BT.detach())


def weighted_sum(losses_BT: Tensor, weights_BT: Tensor) -> Tensor:
    """Sum of the losses under their weights; a weight of 0 (no target) masks even a non-finite loss."""
    return (torch.where(weights_BT != 0, losses_BT, 0.0) * weights_BT).sum()


def per_channel(losses_BT: Tensor, weights_BT: Tensor, channel_BT: Tensor, num_channels: int) -> Tensor:
    """Loss sum and token count of each channel, [num_channels, 2] float64, over the tokens with loss.

    channel_BT: index of the token's channel, int64.
    """
    mask_BT = weights_BT != 0
    index_N = channel_BT[mask_BT]
    values_N2 = torch.stack([(losses_BT * weights_BT)[mask_BT], torch.ones_like(index_N, dtype=torch.float32)], -1)
    sums_C2 = torch.zeros(num_channels, 2, dtype=torch.float64, device=losses_BT.device)
    return sums_C2.index_add_(0, index_N, values_N2.detach().double())
