"""Embedding models: the normalized last hidden state of each text, and the losses that compare texts.

With infonce the negatives of a query are the documents of all groups that the data-parallel ranks read in the same
micro-batch. Each rank computes the loss of all of them and the gradient of its own embeddings; as Megatron takes
the mean over the ranks, the loss is multiplied by their number: the update is that of one rank with all groups.
Shape suffixes: S texts of a micro-batch, H hidden, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from megatron_trainer import parallel
from megatron_trainer.data.values import MicroBatch
from megatron_trainer.losses.embedding import PAIRWISE, SUMMED, InfoNce, Similarities, infonce
from megatron_trainer.models.spec import ModelSpec
from megatron_trainer.tasks.sequences import step_of_states
from megatron_trainer.tasks.shares import with_shares_of_groups
from megatron_trainer.tasks.task import Metrics, Task, sum_and_count
from megatron_trainjob.args import head
from megatron_trainjob.args.tree import TrainArgs

MAIN_LOSS = "loss"
SIMILAR = ("mean_pos", "mean_neg", "margin")
"""Metrics of infonce: cosine of positives, of negatives, and the margin of the positive over the hardest negative."""
CORRELATION = "pearson_cosine"
MOMENTS = ("similarity", "label", "similarity squared", "label squared", "similarity times label")
"""Moments from which the correlation of similarity and label is computed; they are not reported."""


def embedding_task(args: TrainArgs, _: ModelSpec) -> Task:
    """The task of task_type embedding."""
    if head.group_loss(args) == "infonce":
        uses_batch = args.infonce_use_batch
        return Task(
            forward_step=step_of_states(partial(_infonce_loss, args)),
            losses=(MAIN_LOSS, *SIMILAR),
            prepare=parallel.with_everyones_groups if uses_batch else with_shares_of_groups,
        )
    return Task(
        forward_step=step_of_states(partial(_pairwise_loss, args)),
        losses=(MAIN_LOSS, *SIMILAR[:2], *MOMENTS),
        prepare=with_shares_of_groups,
        finish=_with_correlation,
        reported=(MAIN_LOSS, *SIMILAR[:2], CORRELATION),
    )


def _infonce_loss(args: TrainArgs, whole: MicroBatch, states_SH: Tensor) -> tuple[Tensor, Metrics]:
    own_SH, groups = states_SH[: sum(whole.groups)], whole.groups
    own = states_SH.sum() * 0
    factor = whole.loss_share
    if args.infonce_use_batch:
        own_SH = parallel.gathered_over_data(own_SH, [sum(each) for each in whole.everyones_groups])
        groups = tuple(size for each in whole.everyones_groups for size in each)
        factor *= parallel.coordinates().data_size
    if not groups:
        return own, {}
    settings = InfoNce(
        temperature=args.infonce_temperature,
        uses_batch=args.infonce_use_batch,
        hard_negatives=args.infonce_hard_negatives,
        fake_negative_margin=args.infonce_fake_neg_margin if args.infonce_mask_fake_negative else None,
        queries=args.infonce_include_qq,
        documents=args.infonce_include_dd,
    )
    loss, last = _of_sizes(args, own_SH, partial(_mean_infonce, groups=groups, settings=settings))
    return loss * factor + own, _similarities(loss, last)


def _mean_infonce(embeddings_SD: Tensor, *, groups: Sequence[int], settings: InfoNce) -> tuple[Tensor, Similarities]:
    found = infonce(embeddings_SD, groups, settings)
    return found.losses_G.mean(), found


def _of_sizes[T](args: TrainArgs, states_SH: Tensor, loss_of: Callable[[Tensor], tuple[Tensor, T]]) -> tuple[Tensor, T]:
    """The sum of the losses over all embedding sizes, and the similarities at the largest size."""
    sizes = args.matryoshka_dims or (states_SH.shape[1],)
    weights = args.matryoshka_weights or (1.0,) * len(sizes)
    found = {size: loss_of(normalize(states_SH[:, :size], dim=-1)) for size in sizes}
    total = torch.stack([weight * found[size][0] for size, weight in zip(sizes, weights, strict=True)]).sum()
    return total, found[max(sizes)][1]


def _similarities(loss: Tensor, found: Similarities) -> Metrics:
    """Sums and counts over groups; for negatives over the groups that have any."""
    has_negatives_G = ~found.hardest_G.isnan()
    count = len(found.losses_G)
    return {
        MAIN_LOSS: torch.stack([loss.detach() * count, loss.new_tensor(count)]).double(),
        "mean_pos": sum_and_count(found.positive_G),
        "mean_neg": sum_and_count(found.negative_G[has_negatives_G]),
        "margin": sum_and_count((found.positive_G - found.hardest_G)[has_negatives_G]),
    }


def _pairwise_loss(args: TrainArgs, whole: MicroBatch, states_SH: Tensor) -> tuple[Tensor, Metrics]:
    if not whole.groups:
        return states_SH.sum() * 0, {}
    assert whole.target_SN is not None  # rows without a label are dropped
    name, label_G = head.group_loss(args), whole.target_SN[:, 0]
    loss, similar_G = _of_sizes(args, states_SH, partial(_pairwise, name=name, label_G=label_G))
    share, count = (1.0, 1) if name in SUMMED else (whole.loss_share, len(label_G))
    logged = torch.stack([loss.detach() * count, loss.new_tensor(count)]).double()
    return loss * share, {MAIN_LOSS: logged, **_correlated(similar_G.detach(), label_G)}


def _pairwise(embeddings_SD: Tensor, *, name: str, label_G: Tensor) -> tuple[Tensor, Tensor]:
    similar_G = (embeddings_SD[0::2] * embeddings_SD[1::2]).sum(-1)
    losses_G = PAIRWISE[name](similar_G, label_G)
    return losses_G.sum() if name in SUMMED else losses_G.mean(), similar_G


def _correlated(similar_G: Tensor, label_G: Tensor) -> Metrics:
    moments = (similar_G, label_G, similar_G.square(), label_G.square(), similar_G * label_G)
    return {
        "mean_pos": sum_and_count(similar_G[label_G == 1]),
        "mean_neg": sum_and_count(similar_G[label_G == 0]),
        **{name: sum_and_count(values) for name, values in zip(MOMENTS, moments, strict=True)},
    }


def _with_correlation(means: Mapping[str, float]) -> Mapping[str, float]:
    """The means, with Pearson's correlation of similarity and label in place of the moments."""
    shown = {name: value for name, value in means.items() if name not in MOMENTS}
    if not set(MOMENTS) <= set(means):
        return shown
    x, y, xx, yy, xy = (means[name] for name in MOMENTS)
    spread = max(xx - x * x, 0.0) * max(yy - y * y, 0.0)
    return shown | ({CORRELATION: (xy - x * y) / spread**0.5} if spread > 0 else {})
