"""The loss that is trained on beside the one that is logged, for micro-batches of unequal numbers of groups."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.ranks import parity

NUM_GROUPS = ((4, 1, 2), (1, 3, 2))
"""By data-parallel rank: groups of each micro-batch."""
NUM_TOKENS = 4
"""Of each sequence."""


def trained_and_logged(model: Path, given: dict[str, Any]) -> tuple[float, float, float]:
    """The mean loss over micro-batches and ranks whose gradient is taken, the mean that is logged, and the mean of what
    each micro-batch would log by itself.
    """
    import torch
    import torch.distributed as dist

    from megatron_trainer import backend as backends
    from megatron_trainer import parallel
    from megatron_trainer.convert.load import load_weights
    from megatron_trainer.losses.embedding import PAIRWISE
    from megatron_trainer.models.build import build_model
    from megatron_trainer.models.spec import read_model
    from megatron_trainer.tasks import TASKS
    from megatron_trainjob.args.tree import TrainArgs

    args = TrainArgs(model=str(model), torch_dtype="float32", **given)
    place = parallel.initialize(args)
    spec = read_model(model, args)
    (decoder,) = build_model(spec, args, backends.select())
    load_weights([decoder], spec)
    task = TASKS["sft"](args, spec)
    made = partial(_micro_batch, are_pairs=args.loss_type in PAIRWISE, vocab_size=spec.vocab_size, seed=place.data)
    batches = task.prepare([made(count) for count in NUM_GROUPS[place.data]])
    found = torch.zeros(4, dtype=torch.float64)
    for batch in batches:
        output, loss_of = task.forward_step(iter([batch]), decoder)
        loss, metrics = loss_of(output)
        total, count = metrics["loss"]
        means = torch.stack([loss.detach(), total / count]) / (len(batches) * place.data_size)
        found += torch.cat([means, metrics["loss"]])
    dist.all_reduce(found)
    trained, plain, total, count = found.tolist()
    return trained, total / count, plain


def _micro_batch(num_groups: int, *, are_pairs: bool, vocab_size: int, seed: int) -> Any:
    """Pairs have labels of both kinds; other groups are of three sequences, of which one is the positive."""
    import torch

    groups = (2 if are_pairs else 3,) * num_groups
    lengths = [NUM_TOKENS] * sum(groups)
    generator = torch.Generator().manual_seed(100 * seed + num_groups)
    row = torch.randint(0, vocab_size, (sum(lengths),), generator=generator)
    target_SN = torch.tensor([[number % 2 if are_pairs else 1] for number in range(num_groups)]).float()
    return replace(parity.micro_batch(row, lengths, packed=True), groups=groups, target_SN=target_SN)
