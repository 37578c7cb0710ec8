"""Preference losses on summed log-probabilities: DPO and its relatives, one small function each.

z is the difference of the scores of chosen and rejected; a score is the log-ratio of policy and reference, or its
transform for a divergence other than the reverse KL (Wang et al. 2023, arXiv 2309.16240). beta scales all of them.
Shape suffix: P pairs. All values are nats in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]

LARGEST_EXPONENT = 80.0
"""Limit for alpha divergences: exp of a larger value overflows float32."""
LEAST_NOISE = 1e-3
"""Value that exo_pair uses for a label_smoothing of 0, where its formula has log(0)."""


@dataclass(frozen=True, kw_only=True)
class PairLogProbabilities:
    """Summed over the trained tokens of each answer, [P]; num_*: the number of these tokens, float32 [P].

    chosen_loss: mean cross entropy over the trained tokens of all chosen answers, a scalar.
    """

    chosen_P: Tensor
    rejected_P: Tensor
    reference_chosen_P: Tensor
    reference_rejected_P: Tensor
    num_chosen_P: Tensor
    num_rejected_P: Tensor
    chosen_loss: Tensor

    @property
    def chosen_ratio_P(self) -> Tensor:
        """log(policy / reference) of the chosen answers."""
        return self.chosen_P - self.reference_chosen_P

    @property
    def rejected_ratio_P(self) -> Tensor:
        """log(policy / reference) of the rejected answers."""
        return self.rejected_P - self.reference_rejected_P


@dataclass(frozen=True, kw_only=True)
class PreferenceSettings:
    """The parameters of the formulas. alpha: coefficient of alpha_divergence. tau: temperature of discopop's blend."""

    beta: float = 0.1
    label_smoothing: float = 0.0
    divergence: Divergence = "reverse_kl"
    alpha: float = 0.5
    tau: float = 0.05


PairLoss = Callable[[PairLogProbabilities, PreferenceSettings], Tensor]


def preference_loss(
    pairs: PairLogProbabilities, settings: PreferenceSettings, *, types: Sequence[str], weights: Sequence[float]
) -> Tensor:
    """The weighted sum of the losses of these types for each pair, [P]. Raises KeyError for an unknown type."""
    return torch.stack(
        [weight * LOSSES[name](pairs, settings) for name, weight in zip(types, weights, strict=True)]
    ).sum(0)


def score(ratio_P: Tensor, settings: PreferenceSettings) -> Tensor:
    """f'(t) of the divergence at t = exp(ratio), up to a constant that the difference of two scores cancels."""
    match settings.divergence:
        case "reverse_kl":
            return ratio_P
        case "forward_kl":
            return 1 - torch.exp(-ratio_P)
        case "js_divergence":
            return math.log(2) + logsigmoid(ratio_P)
        case "alpha_divergence":
            power = settings.alpha - 1
            if abs(power) < 1e-6:  # the limit is the reverse KL
                return ratio_P
            return (torch.exp((power * ratio_P).clamp(max=LARGEST_EXPONENT)) - 1) / power


def _difference(pairs: PairLogProbabilities, settings: PreferenceSettings) -> Tensor:
    return score(pairs.chosen_ratio_P, settings) - score(pairs.rejected_ratio_P, settings)


def _difference_per_token(pairs: PairLogProbabilities, settings: PreferenceSettings) -> Tensor:
    chosen_P = score(pairs.chosen_ratio_P, settings) / pairs.num_chosen_P.clamp(min=1)
    return chosen_P - score(pairs.rejected_ratio_P, settings) / pairs.num_rejected_P.clamp(min=1)


def _smoothed(z_P: Tensor, settings: PreferenceSettings) -> Tensor:
    """Cross entropy with a label that is wrong with probability label_smoothing."""
    noise = settings.label_smoothing
    return -(1 - noise) * logsigmoid(settings.beta * z_P) - noise * logsigmoid(-settings.beta * z_P)


def sigmoid(pairs: PairLogProbabilities, settings: PreferenceSettings) -> Tensor:
    """-log sigmoid(beta z). Rafailov et al. 2023, eq. 7; with label_smoothing Mitchell 2023 (cDPO)."""
    return _smoothed(_difference(pairs, settings), settings)


def sigmoid_norm(pairs: PairLogProbabilities, settings: PreferenceSettings) -> Tensor:
    """The same with scores per token: length gives no advantage."""
    return _smoothed(_difference_per_token(pairs, settings), settings)


def hinge(pairs: PairLogProbabilities, settings: PreferenceSettings) -> Tensor:
    """max(0, 1 - beta z). Zhao et al. 2023, SLiC."""
    return torch.relu(1 - settings.beta * _difference(pairs, settings))


def ipo(pairs: PairLogProbabilities, settings: PreferenceSettings) -> Tensor:
    """(z - 1 / (2 beta))^2 with scores per token. Azar et al. 2023, eq. 17."""
    return (_difference_per_token(pairs, settings) - 1 / (2 * settings.beta)) ** 2


def exo_pair(pairs: PairLogProbabilities, settings: PreferenceSettings) -> Tensor:
    """KL of the policy's preference to the label's, 1 - noise. Ji et al. 2024, eq. 16."""
    noise = settings.label_smoothing or LEAST_NOISE
    margin_P = settings.beta * _difference(pairs, settings)
    chosen_P = torch.sigmoid(margin_P) * (logsigmoid(margin_P) - math.log1p(-noise))
    return chosen_P + torch.sigmoid(-margin_P) * (logsigmoid(-margin_P) - math.log(noise))


def robust(pairs: PairLogProbabilities, settings: PreferenceSettings) -> Tensor:
    """The loss without label noise, estimated without bias. Chowdhury et al. 2024."""
    noise = settings.label_smoothing
    margin_P = settings.beta * _difference(pairs, settings)
    return (-(1 - noise) * logsigmoid(margin_P) + noise * logsigmoid(-margin_P)) / (1 - 2 * noise)


def nca_pair(pairs: PairLogProbabilities, settings: PreferenceSettings) -> Tensor:
    """Noise contrastive alignment with one noise answer. Chen et al. 2024."""
    chosen_P, rejected_P = settings.beta * pairs.chosen_ratio_P, settings.beta * pairs.rejected_ratio_P
    return -logsigmoid(chosen_P) - 0.5 * logsigmoid(-chosen_P) - 0.5 * logsigmoid(-rejected_P)


def bco_pair(pairs: PairLogProbabilities, settings: PreferenceSettings) -> Tensor:
    """Each answer classified independently. Jung et al. 2024, without its reward shift, as in TRL since 0.29."""
    return -logsigmoid(settings.beta * pairs.chosen_ratio_P) - logsigmoid(-settings.beta * pairs.rejected_ratio_P)


def sppo_hard(pairs: PairLogProbabilities, settings: PreferenceSettings) -> Tensor:
    """Self-play with hard preferences. Wu et al. 2024, eq. 4.7 with probabilities 1 and 0."""
    half = 0.5 / settings.beta
    return (pairs.chosen_ratio_P - half) ** 2 + (pairs.rejected_ratio_P + half) ** 2


def aot(pairs: PairLogProbabilities, settings: PreferenceSettings) -> Tensor:
    """Policy's and reference's log-ratios of chosen to rejected, sorted over the pairs. Melnyk et al. 2024."""
    policy_P = (pairs.chosen_P - pairs.rejected_P).sort().values
    return _smoothed(policy_P - (pairs.reference_chosen_P - pairs.reference_rejected_P).sort().values, settings)


def aot_unpaired(pairs: PairLogProbabilities, settings: PreferenceSettings) -> Tensor:
    """Log-ratios of chosen and of rejected answers, sorted over the pairs. Melnyk et al. 2024."""
    return _smoothed(pairs.chosen_ratio_P.sort().values - pairs.rejected_ratio_P.sort().values, settings)


def apo_zero(pairs: PairLogProbabilities, settings: PreferenceSettings) -> Tensor:
    """Chosen up, rejected down. D'Oosterlinck et al. 2024, eq. 7."""
    return (
        1 - torch.sigmoid(settings.beta * pairs.chosen_ratio_P) + torch.sigmoid(settings.beta * pairs.rejected_ratio_P)
    )


def apo_down(pairs: PairLogProbabilities, settings: PreferenceSettings) -> Tensor:
    """Both down, rejected more. D'Oosterlinck et al. 2024, eq. 8."""
    chosen_P = settings.beta * pairs.chosen_ratio_P
    return torch.sigmoid(chosen_P) + 1 - torch.sigmoid(chosen_P - settings.beta * pairs.rejected_ratio_P)


def discopop(pairs: PairLogProbabilities, settings: PreferenceSettings) -> Tensor:
    """Logistic and exponential loss, blended by the margin. Lu et al. 2024, eq. 5."""
    margin_P = settings.beta * _difference(pairs, settings)
    share_P = torch.sigmoid(margin_P / settings.tau)
    return -logsigmoid(margin_P) * (1 - share_P) + torch.exp(-margin_P) * share_P


def chosen_only(pairs: PairLogProbabilities, settings: PreferenceSettings) -> Tensor:
    """The ordinary loss on the chosen answers, the same for every pair; to be combined with others."""
    return pairs.chosen_loss.expand_as(pairs.chosen_P)


LOSSES: dict[str, PairLoss] = {
    "sigmoid": sigmoid,
    "sigmoid_norm": sigmoid_norm,
    "hinge": hinge,
    "ipo": ipo,
    "exo_pair": exo_pair,
    "nca_pair": nca_pair,
    "robust": robust,
    "bco_pair": bco_pair,
    "sppo_hard": sppo_hard,
    "aot": aot,
    "aot_pair": aot_unpaired,
    "aot_unpaired": aot_unpaired,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "discopop": discopop,
    "sft": chosen_only,
}
"""Keys are loss_type. aot_pair is the reference's name for what TRL now calls aot_unpaired."""
