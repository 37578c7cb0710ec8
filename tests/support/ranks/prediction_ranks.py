"""What test_prediction.py runs on gloo ranks: one step of multi-token prediction beside plain torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

PACKED_ROWS = ((40, 16, 40), (56, 40))
ROWS = ((96,), (96,))


@dataclass(frozen=True, kw_only=True)
class Differences:
    """Largest over tensors, relative to the tensor's largest value; losses absolute. logged: by name."""

    losses: float
    gradients: float
    worst: str
    missing: tuple[str, ...]
    changed: tuple[str, ...]
    logged: dict[str, float]


def rows(*, packed: bool, vocab_size: int) -> tuple[list[Any], Any, list[Any]]:
    """(tokens of each row, lengths of their sequences, weights of the token after each position)."""
    import torch

    lengths = PACKED_ROWS if packed else ROWS
    draw = torch.Generator().manual_seed(7)
    ids = list(torch.randint(0, vocab_size, (2, 96), generator=draw))
    weights = []
    for parts in lengths:
        row = (torch.rand(96, generator=draw) < 0.8).float()
        ends = torch.tensor(parts).cumsum(0) - 1
        row[ends] = 0.0  # no token follows the last one of a sequence
        weights.append(row)
    return ids, lengths, weights


def compare(
    directory: Path, reference: Path, settings: dict[str, Any], *, packed: bool, virtual: int | None
) -> Differences:
    """One step in this layout: its losses, the gradients of all tensors, and the weights as an export writes them."""
    import torch
    from safetensors.torch import load_file

    from megatron_trainer import backend as backends
    from megatron_trainer import parallel
    from megatron_trainer.models.spec import read_model
    from megatron_trainer.tasks import TASKS
    from megatron_trainer.train import setup
    from megatron_trainjob.args.tree import TrainArgs
    from tests.support.models.prediction_model import FACTOR
    from tests.support.ranks.parity import micro_batch

    expected = torch.load(reference)
    number = len(expected["sums"]) - 1
    args = TrainArgs(
        model=str(directory),
        mtp_num_layers=number,
        mtp_loss_scaling_factor=FACTOR,
        recompute_granularity="none",
        use_distributed_optimizer=False,
        packing=packed,
        **settings,
    )
    parallel.initialize(args, virtual_stages=virtual)
    spec = read_model(directory, args)
    engine = setup.build_engine(args, spec, backends.select())
    ids, lengths, weights = rows(packed=packed, vocab_size=spec.vocab_size)
    batches = []
    for row, parts, weight in zip(ids, lengths, weights, strict=True):
        batch = micro_batch(row, parts, packed=packed)
        labels = batch.labels_BT.masked_fill(weight[None] == 0, -100)
        batches.append(
            replace(batch, loss_weight_BT=weight[None], labels_BT=labels, has_loss_BT=weight[None].numpy() != 0)
        )
    return differences(
        TASKS["sft"](args, spec),
        engine,
        spec,
        batches,
        stored=load_file(directory / "model.safetensors"),
        means=expected["sums"] / expected["counts"],
        gradients=expected["gradients"],
    )


def differences(
    task: Any, engine: Any, spec: Any, batches: Any, *, stored: dict[str, Any], means: Any, gradients: dict[str, Any]
) -> Differences:
    """One step of these micro-batches beside the means of its losses and all gradients. stored: the loaded weights."""
    from megatron_trainer import backend as backends
    from megatron_trainer.pipeline import run_schedule
    from megatron_trainer.train.step import _counts, _reduce
    from tests.support.ranks.parity import gathered

    exported = gathered(engine.models, spec)
    changed = sorted(n for n in stored.keys() | exported.keys() if not _same(stored.get(n), exported.get(n)))
    for chunk in engine.chunks:
        chunk.zero_grad_buffer()
    metrics = run_schedule(engine.chunks, task.forward_step, batches, is_training=True)
    counts = _counts(batches, backends.select())
    logged = _reduce(task, metrics, counts, backends.select(), stop_requested=False).losses
    ours = gathered(engine.models, spec, read=lambda parameter: getattr(parameter, "main_grad", None))
    errors = {name: _relative(ours[name], gradients[name]) for name in ours.keys() & gradients.keys()}
    worst = max(errors, key=errors.__getitem__)
    return Differences(
        losses=max(abs(found - float(mean)) for found, mean in zip(logged.values(), means, strict=True)),
        gradients=errors[worst],
        worst=worst,
        missing=tuple(sorted(gradients.keys() - ours.keys())),
        changed=tuple(changed),
        logged=logged,
    )


def _same(one: Any, other: Any) -> bool:
    import torch

    return one is not None and other is not None and torch.equal(one, other)


def _relative(ours: Any, theirs: Any) -> float:
    return float((ours - theirs).abs().max() / (theirs.abs().max() + 1e-12))
