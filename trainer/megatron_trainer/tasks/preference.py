"""Preference training (DPO and its relatives): the loss of pairs of answers, and its metrics.

A micro-batch holds the chosen sequences of its pairs and then the rejected ones, in one forward pass.
Shape suffixes: S sequences of a micro-batch, P = S / 2 pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from megatron_trainer import parallel
from megatron_trainer.data.values import MicroBatch
from megatron_trainer.losses.preference import PairLogProbabilities, PreferenceSettings, preference_loss
from megatron_trainer.models.spec import ModelSpec
from megatron_trainer.tasks.sequences import step_of_sums
from megatron_trainer.tasks.task import Task, sum_and_count, weighted
from megatron_trainjob.args import derive
from megatron_trainjob.args.tree import TrainArgs

MAIN_LOSS = "loss"
CHOSEN_LOSS = "nll_loss"
METRICS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
    "logits/chosen",
    "logits/rejected",
)


def preference_task(args: TrainArgs, spec: ModelSpec) -> Task:
    """The task of `rlhf` with rlhf_type dpo; tasks/reference.py supplies its `prepare`."""
    chosen_loss = (CHOSEN_LOSS,) if args.rpo_alpha is not None else ()
    return Task(forward_step=step_of_sums(partial(_loss, args), args, spec), losses=(MAIN_LOSS, *METRICS, *chosen_loss))


def num_trained_tokens(whole: MicroBatch) -> Tensor:
    """Tokens with loss of each sequence, float32 [S]."""
    sequences = whole.sequence_BT[whole.loss_weight_BT != 0]
    return one_hot(sequences, whole.num_samples).sum(0).float()


def _loss(args: TrainArgs, whole: MicroBatch, sums_2S: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
    """The mean over the pairs, scaled by their share of the global batch, and the metrics."""
    if whole.num_samples == 0:
        return sums_2S.sum(), {}
    log_probability_S, logit_S = parallel.sum_of_context_parts(sums_2S)
    tokens_S = num_trained_tokens(whole)
    pairs = _pairs(log_probability_S, tokens_S, whole.reference_S)
    types, weights = derive.preference_losses(args)
    loss = preference_loss(pairs, _settings(args), types=types, weights=weights).mean()
    metrics = _metrics(args, pairs) | _mean_logits(logit_S.detach(), tokens_S)
    if args.rpo_alpha is not None:
        loss = loss + args.rpo_alpha * pairs.chosen_loss
        metrics[CHOSEN_LOSS] = weighted(pairs.chosen_loss, len(pairs.chosen_P), args)
    metrics[MAIN_LOSS] = weighted(loss, len(pairs.chosen_P), args)
    return loss * whole.loss_share, metrics


def _pairs(log_probability_S: Tensor, tokens_S: Tensor, reference_S: Tensor | None) -> PairLogProbabilities:
    """reference_S: None stands for a reference under which all answers are equally likely."""
    chosen_P, rejected_P = log_probability_S.chunk(2)
    if reference_S is None:
        reference_S = torch.zeros_like(log_probability_S)
    reference_chosen_P, reference_rejected_P = reference_S.chunk(2)
    num_chosen_P, num_rejected_P = tokens_S.chunk(2)
    return PairLogProbabilities(
        chosen_P=chosen_P,
        rejected_P=rejected_P,
        reference_chosen_P=reference_chosen_P,
        reference_rejected_P=reference_rejected_P,
        num_chosen_P=num_chosen_P,
        num_rejected_P=num_rejected_P,
        chosen_loss=-chosen_P.sum() / num_chosen_P.sum().clamp(min=1),
    )


def _settings(args: TrainArgs) -> PreferenceSettings:
    return PreferenceSettings(
        beta=args.beta,
        label_smoothing=args.label_smoothing,
        divergence=args.f_divergence_type,
        alpha=args.f_alpha_divergence_coef,
        tau=args.discopop_tau,
    )


@torch.no_grad()
def _metrics(args: TrainArgs, pairs: PairLogProbabilities) -> dict[str, Tensor]:
    """Means over pairs; a reward is beta times the log-ratio of policy and reference."""
    chosen_P, rejected_P = args.beta * pairs.chosen_ratio_P, args.beta * pairs.rejected_ratio_P
    return {
        "rewards/chosen": sum_and_count(chosen_P),
        "rewards/rejected": sum_and_count(rejected_P),
        "rewards/accuracies": sum_and_count((chosen_P > rejected_P).float()),
        "rewards/margins": sum_and_count(chosen_P - rejected_P),
        "logps/chosen": sum_and_count(pairs.chosen_P),
        "logps/rejected": sum_and_count(pairs.rejected_P),
    }


def _mean_logits(logit_S: Tensor, tokens_S: Tensor) -> dict[str, Tensor]:
    """Means over trained tokens of the mean logit."""
    sums = torch.stack([logit_S, tokens_S]).double().chunk(2, dim=1)
    return {f"logits/{name}": pair.sum(1) for name, pair in zip(("chosen", "rejected"), sums, strict=True)}
