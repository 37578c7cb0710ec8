"""Training on single answers that are desirable or not (rlhf_type kto): their loss and its metrics.

Shape suffix: S sequences of a micro-batch, one for each answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from megatron_trainer import parallel
from megatron_trainer.data.values import MicroBatch
from megatron_trainer.losses.unpaired import UnpairedSettings, unpaired_loss
from megatron_trainer.models.spec import ModelSpec
from megatron_trainer.tasks.preference import MAIN_LOSS, num_trained_tokens
from megatron_trainer.tasks.sequences import step_of_sums
from megatron_trainer.tasks.task import Task, weighted
from megatron_trainjob.args import derive
from megatron_trainjob.args.tree import TrainArgs

DIVERGENCE = "kl"
SIDES = ("chosen", "rejected")
"""Names of desirable and undesirable answers in metrics, as in TRL."""
METRICS = tuple(f"{kind}/{side}" for kind in ("rewards", "logps", "logits") for side in SIDES)


def unpaired_task(args: TrainArgs, spec: ModelSpec) -> Task:
    """The task of `rlhf` with rlhf_type kto; preference_run.py supplies its `prepare`."""
    divergence = (DIVERGENCE,) if derive.estimates_divergence(args, "rlhf") else ()
    names = (MAIN_LOSS, *METRICS, *divergence)
    step = step_of_sums(partial(_loss, args), args, spec)
    return Task(forward_step=step, losses=names, finish=_with_margin, reported=(*names, "rewards/margins"))


def _with_margin(means: Mapping[str, float]) -> Mapping[str, float]:
    """The means, and the difference of the mean rewards where there were answers of both kinds."""
    if not {"rewards/chosen", "rewards/rejected"} <= set(means):
        return means
    return {**means, "rewards/margins": means["rewards/chosen"] - means["rewards/rejected"]}


def _loss(args: TrainArgs, whole: MicroBatch, sums_2S: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
    """The mean over the answers, scaled by their share of the global batch, and the metrics."""
    if whole.num_samples == 0:
        return sums_2S.sum(), {}
    assert whole.reference_S is not None  # the rules refuse arguments that would leave these out
    assert whole.target_SN is not None
    log_probability_S, logit_S = parallel.sum_of_context_parts(sums_2S)
    is_desirable_S = whole.target_SN[:, 0] > 0
    ratio_S = log_probability_S - whole.reference_S
    divergence = ratio_S.new_zeros(()) if whole.divergence is None else whole.divergence
    settings = UnpairedSettings(
        beta=args.beta, desirable_weight=args.desirable_weight, undesirable_weight=args.undesirable_weight
    )
    name = derive.unpaired_loss(args)
    loss = unpaired_loss(name, ratio_S, is_desirable_S, divergence=divergence, settings=settings).mean()
    metrics = {MAIN_LOSS: weighted(loss, whole.num_samples, args)}
    if whole.divergence is not None:
        metrics[DIVERGENCE] = torch.stack([divergence.double(), torch.ones_like(divergence).double()])
    tokens_S = num_trained_tokens(whole)
    answers_S = torch.ones_like(ratio_S)
    for side, is_here_S in zip(SIDES, (is_desirable_S, ~is_desirable_S), strict=True):
        metrics[f"rewards/{side}"] = _sums(args.beta * ratio_S, answers_S, is_here_S)
        metrics[f"logps/{side}"] = _sums(log_probability_S, answers_S, is_here_S)
        metrics[f"logits/{side}"] = _sums(logit_S, tokens_S, is_here_S)
    return loss * whole.loss_share, metrics


def _sums(values_S: Tensor, counts_S: Tensor, is_here_S: Tensor) -> Tensor:
    """Sum of the values and count over the selected answers."""
    both = torch.stack([values_S.detach(), counts_S]).double()
    return both[:, is_here_S].sum(1)
