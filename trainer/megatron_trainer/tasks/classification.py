"""Sequence classification and regression: transformers' own losses on the scores that a head computes for each
sequence.

Shape suffixes: S sequences of a micro-batch, C scores of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor
from torch.nn import functional

from megatron_trainer.data.values import MicroBatch
from megatron_trainer.models.spec import ModelSpec
from megatron_trainer.tasks.sequences import step_of_scores
from megatron_trainer.tasks.shares import with_shares
from megatron_trainer.tasks.task import Task, sum_and_count
from megatron_trainjob.args import head
from megatron_trainjob.args.head import ProblemType
from megatron_trainjob.args.tree import TrainArgs

MAIN_LOSS = "loss"
QUALITY: Mapping[ProblemType, str] = {
    "single_label_classification": "accuracy",
    "multi_label_classification": "accuracy",
    "regression": "mse",
}
"""Metrics beside the loss. With several labels a sequence is correct when all of them are."""


def classification_task(args: TrainArgs, spec: ModelSpec) -> Task:
    """The task of task_type seq_cls."""
    problem = head.problem_type(args, spec.config)
    return Task(
        forward_step=step_of_scores(partial(_loss, problem)), losses=(MAIN_LOSS, QUALITY[problem]), prepare=with_shares
    )


def losses_of(scores_SC: Tensor, target_SC: Tensor, problem: ProblemType) -> Tensor:
    """[S]: the loss of each sequence, whose mean is the loss of transformers' ForSequenceClassification.

    target_SC: the class in a single column, 0 or 1 for each class, or the numbers.
    """
    match problem:
        case "single_label_classification":
            return functional.cross_entropy(scores_SC, target_SC[:, 0].long(), reduction="none")
        case "multi_label_classification":
            return functional.binary_cross_entropy_with_logits(scores_SC, target_SC, reduction="none").mean(-1)
        case "regression":
            return functional.mse_loss(scores_SC, target_SC, reduction="none").mean(-1)


def _loss(problem: ProblemType, whole: MicroBatch, scores_SC: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
    """The mean over the sequences, scaled by their share of the global batch, and the metrics."""
    if whole.num_samples == 0:
        return scores_SC.sum() * 0, {}
    assert whole.target_SN is not None
    losses_S = losses_of(scores_SC, whole.target_SN, problem)
    quality_S = _quality(scores_SC.detach(), whole.target_SN, problem)
    metrics = {MAIN_LOSS: sum_and_count(losses_S.detach()), QUALITY[problem]: sum_and_count(quality_S)}
    return losses_S.mean() * whole.loss_share, metrics


def _quality(scores_SC: Tensor, target_SC: Tensor, problem: ProblemType) -> Tensor:
    match problem:
        case "single_label_classification":
            return (scores_SC.argmax(-1) == target_SC[:, 0]).float()
        case "multi_label_classification":
            return ((scores_SC > 0) == (target_SC > 0)).all(-1).float()
        case "regression":
            return (scores_SC - target_SC).square().mean(-1)
