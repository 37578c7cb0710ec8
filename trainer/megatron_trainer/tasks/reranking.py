"""Rerankers: a score for each document of a question, from a head or from the logits of yes and no.

Shape suffix: S documents of a micro-batch, group after group, the positives of each first.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from megatron_trainer.data.values import MicroBatch
from megatron_trainer.losses import ranking
from megatron_trainer.models.spec import ModelSpec
from megatron_trainer.tasks.sequences import step_of_answers, step_of_scores
from megatron_trainer.tasks.shares import with_shares, with_shares_of_groups
from megatron_trainer.tasks.task import Metrics, Task, sum_and_count
from megatron_trainjob.args import head
from megatron_trainjob.args.tree import TrainArgs

MAIN_LOSS = "loss"
METRICS = ("accuracy", "mean_pos", "mean_neg", "mrr", "ndcg")


def reranking_task(args: TrainArgs, spec: ModelSpec) -> Task:
    """The task of task_type reranker and generative_reranker."""
    loss = partial(_loss, args)
    is_listwise = head.group_loss(args) == "listwise_reranker"
    return Task(
        forward_step=step_of_scores(loss) if args.task_type == "reranker" else step_of_answers(loss, args, spec),
        losses=(MAIN_LOSS, *METRICS),
        prepare=with_shares_of_groups if is_listwise else with_shares,
    )


def _loss(args: TrainArgs, whole: MicroBatch, scores_S1: Tensor) -> tuple[Tensor, Metrics]:
    """The mean over documents (pointwise) or groups (listwise), scaled by their share of the global batch."""
    if not whole.groups:
        return scores_S1.sum() * 0, {}
    assert whole.target_SN is not None
    positives = [int(number) for number in whole.target_SN[:, 0].tolist()]
    lists = list(zip(torch.split(scores_S1[:, 0], list(whole.groups)), positives, strict=True))
    if head.group_loss(args) == "listwise_reranker":
        temperature = args.listwise_reranker_temperature
        losses = torch.stack([ranking.listwise(*each, temperature=temperature).mean() for each in lists])
    else:
        losses = torch.cat([ranking.pointwise(*each) for each in lists])
    metrics = _metrics([(scores_S.detach(), number) for scores_S, number in lists])
    return losses.mean() * whole.loss_share, {MAIN_LOSS: sum_and_count(losses.detach()), **metrics}


def _metrics(lists: list[tuple[Tensor, int]]) -> Metrics:
    """Sums and counts over documents; for ranking metrics over the lists that have both kinds."""
    ranked = [(scores_S, number) for scores_S, number in lists if 0 < number < len(scores_S)]
    nothing = lists[0][0].new_zeros(0)

    def of(parts: list[Tensor]) -> Tensor:
        return sum_and_count(torch.cat([nothing, *parts]))

    return {
        "accuracy": of([ranking.accuracy(*each) for each in lists]),
        "mean_pos": of([scores_S[:number] for scores_S, number in lists]),
        "mean_neg": of([scores_S[number:] for scores_S, number in lists]),
        "mrr": of([ranking.reciprocal_rank(*each)[None] for each in ranked]),
        "ndcg": of([ranking.discounted_gain(*each)[None] for each in ranked]),
    }
