"""Pre-training and supervised fine-tuning: cross entropy of the next token over the tokens that carry loss.

Shape suffixes: B batch (1 when rows are packed), T tokens of this rank, N tokens of a chunk, V vocabulary columns of
this rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from megatron_trainer import parallel
from megatron_trainer.data.values import MicroBatch
from megatron_trainer.losses import token
from megatron_trainer.models.linear_cross_entropy import LinearCrossEntropy
from megatron_trainer.models.spec import ModelSpec
from megatron_trainer.tasks import prediction
from megatron_trainer.tasks.forward import CrossEntropy, cross_entropy, forward
from megatron_trainer.tasks.prediction import Further, Losses, further_losses
from megatron_trainer.tasks.task import Task
from megatron_trainjob import shown
from megatron_trainjob.args.tree import TrainArgs

MAIN_LOSS = "lm loss"


def language_task(args: TrainArgs, spec: ModelSpec) -> Task:
    """The task of `pt` and `sft`; they differ only in their data."""
    return Task(
        forward_step=partial(_forward_step, args, spec, cross_entropy(args)),
        losses=(MAIN_LOSS, *prediction.names(spec.model.trained_predictions)),
        has_channels=args.enable_channel_loss,
    )


def _forward_step(
    args: TrainArgs, spec: ModelSpec, kernel: CrossEntropy, batches: Iterator[MicroBatch], model: nn.Module
) -> tuple[Tensor, Any]:
    whole = next(batches)
    batch = parallel.local_part(whole)
    main = LinearCrossEntropy(
        spec=spec,
        labels_BT=batch.labels_BT,
        weights_BT=batch.loss_weight_BT,
        has_loss_BT=batch.has_loss_BT,
        cross_entropy=kernel,
        objective=token.dynamic_fine_tuning if args.enable_dft_loss else Tensor.float,
    )
    losses = Losses(main=main, further=further_losses(whole, main))
    output = forward(model, whole, batch, output_processor=losses)
    return output, partial(_loss, args, batch, (whole.loss_weight_BT != 0).sum(), losses.further)


def _loss(
    args: TrainArgs,
    batch: MicroBatch,
    num_target_tokens: Tensor,
    further: tuple[Further, ...],
    output: tuple[Tensor, Tensor, list[Tensor]],
) -> tuple[Any, ...]:
    """Per token: (sum, count, metrics), which Megatron divides by the global count. Else: (mean, metrics)."""
    loss_sum, losses_BT, later_sums = output
    count = (batch.loss_weight_BT != 0).sum()
    metrics = {MAIN_LOSS: torch.stack([loss_sum.detach().double(), count.double()])}
    metrics |= prediction.metrics(further, later_sums)
    factor = args.mtp_loss_scaling_factor
    loss_sum = prediction.with_further(loss_sum, further, later_sums, num_targets=num_target_tokens, factor=factor)
    if args.enable_channel_loss:
        metrics |= _channel_losses(losses_BT, batch)
    if args.calculate_per_token_loss:
        return loss_sum, count.int(), metrics
    return loss_sum / num_target_tokens.clamp(min=1), metrics


def _channel_losses(losses_BT: Tensor, batch: MicroBatch) -> dict[str, Tensor]:
    """Sum and count of each channel of the micro-batch; samples without a channel are channel None.

    Names come from rows and go to logs, files and pages, so they are made printable.
    """
    if not batch.channels:
        return {}
    channels = [shown.clean(shown.without_secrets(str(name))) for name in batch.channels]
    names = sorted(set(channels))
    channel_of_sequence = torch.tensor([names.index(name) for name in channels], device=losses_BT.device)
    channel_BT = channel_of_sequence[batch.sequence_BT]
    sums_C2 = token.per_channel(losses_BT, batch.loss_weight_BT, channel_BT, len(names))
    return {f"loss_{name}": sums for name, sums in zip(names, sums_C2, strict=True)}
