"""Reward models (rlhf_type rm): a score for each answer of a pair, and a loss on their difference.

A micro-batch holds the chosen sequences of its pairs and then the rejected ones, in one forward pass.
Shape suffixes: S sequences of a micro-batch, P = S / 2 pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from megatron_trainer.data.values import MicroBatch
from megatron_trainer.losses.reward import bradley_terry
from megatron_trainer.models.spec import ModelSpec
from megatron_trainer.tasks.preference import MAIN_LOSS
from megatron_trainer.tasks.sequences import step_of_scores
from megatron_trainer.tasks.task import Task, sum_and_count, weighted
from megatron_trainjob.args.tree import TrainArgs

METRICS = ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins")


def reward_task(args: TrainArgs, _: ModelSpec) -> Task:
    """The task of `rlhf` with rlhf_type rm."""
    return Task(forward_step=step_of_scores(partial(_loss, args)), losses=(MAIN_LOSS, *METRICS))


def _loss(args: TrainArgs, whole: MicroBatch, scores_S1: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
    """The mean over the pairs, scaled by their share of the global batch, and the metrics."""
    if whole.num_samples == 0:
        return scores_S1.sum() * 0, {}
    chosen_P, rejected_P = scores_S1[:, 0].chunk(2)
    margin_P = torch.zeros_like(chosen_P) if whole.target_SN is None else whole.target_SN[:, 0]
    coefficient = args.center_rewards_coefficient or 0.0
    loss = bradley_terry(chosen_P, rejected_P, margin_P, center_coefficient=coefficient).mean()
    metrics = _metrics(chosen_P.detach(), rejected_P.detach())
    metrics[MAIN_LOSS] = weighted(loss, len(chosen_P), args)
    return loss * whole.loss_share, metrics


def _metrics(chosen_P: Tensor, rejected_P: Tensor) -> dict[str, Tensor]:
    """Sums and counts over pairs."""
    values = (chosen_P, rejected_P, (chosen_P > rejected_P).float(), chosen_P - rejected_P)
    return {name: sum_and_count(value) for name, value in zip(METRICS, values, strict=True)}
