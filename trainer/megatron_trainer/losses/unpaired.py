"""Losses of answers that are desirable or not, each judged independently: KTO and its relative, one function each.

Shape suffix: S answers. All values are nats in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class UnpairedSettings:
    """The parameters of the formulas."""

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0


UnpairedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(beta times the log-ratio [S], beta times the divergence, desirable [S] bool) -> losses [S]."""


def unpaired_loss(
    name: str, ratio_S: Tensor, is_desirable_S: Tensor, *, divergence: Tensor, settings: UnpairedSettings
) -> Tensor:
    """The weighted loss of each answer, [S]. Raises KeyError for an unknown name.

    ratio_S: log(policy / reference) of the answers. divergence: estimate of KL(policy, reference) >= 0, a scalar.
    """
    losses_S = LOSSES[name](settings.beta * ratio_S, settings.beta * divergence, is_desirable_S)
    return losses_S * torch.where(is_desirable_S, settings.desirable_weight, settings.undesirable_weight)


def kto(reward_S: Tensor, divergence: Tensor, is_desirable_S: Tensor) -> Tensor:
    """1 - sigmoid(r - d) where desirable, else 1 - sigmoid(d - r). Ethayarajh et al. 2024, eq. 7."""
    return torch.sigmoid(torch.where(is_desirable_S, divergence - reward_S, reward_S - divergence))


def apo_zero_unpaired(reward_S: Tensor, divergence: Tensor, is_desirable_S: Tensor) -> Tensor:
    """The same without the divergence. D'Oosterlinck et al. 2024, eq. 7 without pairs."""
    return kto(reward_S, torch.zeros_like(divergence), is_desirable_S)


LOSSES: dict[str, UnpairedLoss] = {"kto": kto, "apo_zero_unpaired": apo_zero_unpaired}
"""Keys are loss_type."""
