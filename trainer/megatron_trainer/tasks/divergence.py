"""Estimates the KL divergence of policy and reference from mismatched prompts and answers (data/mismatch.py).

The estimate of a micro-batch is the mean over the mismatched samples of the micro-batches of that number on all
data-parallel ranks, at least 0, and carries no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_trainer.data.values import MicroBatch
from megatron_trainer.tasks.reference import Reference, with_reference
from megatron_trainer.tasks.task import sum_and_count
from megatron_trainjob.args.tree import TrainArgs


def with_divergence(
    args: TrainArgs, policy: Reference, reference: Reference | None, batches: Sequence[MicroBatch]
) -> Sequence[MicroBatch]:
    """The micro-batches with reference log-probabilities, loss shares and divergence estimates. Collective.

    policy: the model being trained, run like a reference. reference: None if the micro-batches hold its
    log-probabilities.
    """
    mismatched = [batch.mismatched for batch in batches if batch.mismatched is not None]
    of_policy = policy.log_probabilities(mismatched)
    of_reference = (
        [batch.reference_S for batch in mismatched] if reference is None else reference.log_probabilities(mismatched)
    )
    sums_M2 = torch.zeros(len(batches), 2, dtype=torch.float64, device=batches[0].tokens_BT.device)
    for number, (batch, ours_S, theirs_S) in enumerate(zip(mismatched, of_policy, of_reference, strict=True)):
        if batch.num_samples and ours_S is not None and theirs_S is not None:
            sums_M2[number] = sum_and_count(ours_S - theirs_S)
    dist.all_reduce(sums_M2, group=parallel_state.get_data_parallel_group())
    divergence_M = (sums_M2[:, 0] / sums_M2[:, 1].clamp(min=1)).clamp(min=0).float()
    known = with_reference(args, reference, batches)
    return [replace(batch, divergence=one) for batch, one in zip(known, divergence_M, strict=True)]
