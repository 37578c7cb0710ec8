"""Losses of multi-token prediction beside the loss of the next token.

With D layers, of which layer k predicts the token k places after the next one, the trained loss is

    L = L_0 + mtp_loss_scaling_factor / D * (L_1 + .. + L_D)

where each is a mean over the tokens that have it, as in Megatron-Core; a token near the end of its sequence, or before
tokens without loss, has fewer of them. (The report on DeepSeek-V3, arXiv 2412.19437 eq. 24, divides all by the length.)

Shape suffixes: B batch (1 when rows are packed), T tokens of this rank, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from megatron_trainer import parallel
from megatron_trainer.data.values import MicroBatch
from megatron_trainer.models.linear_cross_entropy import LinearCrossEntropy
from megatron_trainer.models.prediction import further_targets


@dataclass(frozen=True, kw_only=True)
class Further:
    """The prediction of one later token in a micro-batch.

    processor: for this context rank's part of the row. num_own, num_targets: tokens with a loss, of this part and of
    the whole row.
    """

    name: str
    processor: LinearCrossEntropy
    num_own: Tensor
    num_targets: Tensor


def names(number: int) -> tuple[str, ...]:
    """The names of the losses of this number of layers."""
    return tuple(f"mtp_{distance} loss" for distance in range(1, number + 1))


def further_losses(whole: MicroBatch, main: LinearCrossEntropy) -> tuple[Further, ...]:
    """The predictions of later tokens in the row `whole`. main: the output processor of the next token."""
    found = []
    for distance, name in enumerate(names(main.spec.model.trained_predictions), start=1):
        later = further_targets(whole, distance)
        part = parallel.local_part(later)
        processor = replace(
            main,
            labels_BT=part.labels_BT,
            weights_BT=part.loss_weight_BT,
            has_loss_BT=part.has_loss_BT,
            objective=Tensor.float,
        )
        own, every = ((each.loss_weight_BT != 0).sum() for each in (part, later))
        found.append(Further(name=name, processor=processor, num_own=own, num_targets=every))
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Losses:
    """An output_processor: the loss of the next token, and those of later ones where the model predicts them."""

    main: LinearCrossEntropy
    further: tuple[Further, ...]

    def __call__(self, *, further: Sequence[Tensor] = (), **given: Any) -> tuple[Tensor, Tensor, list[Tensor]]:  # noqa: ANN401 - megatron's
        """(sum of the losses, losses [B, T], sums of later tokens' losses). further: hidden states [T, B, H]."""
        loss_sum, losses_BT = self.main(**given)
        later = zip(self.further, further, strict=True)
        return loss_sum, losses_BT, [one.processor(**{**given, "hidden_states": states})[0] for one, states in later]


def with_further(
    loss_sum: Tensor, further: Sequence[Further], sums: Sequence[Tensor], *, num_targets: Tensor, factor: float
) -> Tensor:
    """The sum to be trained, whose mean over num_targets tokens is L as above. num_targets: those of L_0."""
    for one, later_sum in zip(further, sums, strict=True):
        share = num_targets / one.num_targets.clamp(min=1)
        loss_sum = loss_sum + factor / len(further) * share * later_sum
    return loss_sum


def metrics(further: Sequence[Further], sums: Sequence[Tensor]) -> dict[str, Tensor]:
    """Sum and count of each later token's loss."""
    pairs = zip(further, sums, strict=True)
    return {one.name: torch.stack([each.detach().double(), one.num_own.double()]) for one, each in pairs}
