"""What test_loss_tokens.py runs on gloo ranks: a step that skips tokens without a loss, and one that does not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROW = 96


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step on this rank. rows: that its output layer saw in each call, none on a stage without one."""

    losses: dict[str, float]
    gradients: dict[str, Any]
    rows: tuple[int, ...]
    num_targets: int


@dataclass(frozen=True, kw_only=True)
class Compared:
    """errors: of gradients, relative to the largest number of each tensor, by parameter. losses: with skipped tokens,
    and without.
    """

    errors: dict[str, float]
    losses: tuple[dict[str, float], dict[str, float]]
    rows: tuple[tuple[int, ...], tuple[int, ...]]
    num_targets: int


def micro_batches(*, packed: bool, multiple: int) -> list[Any]:
    """Prompts with answers and weights of many kinds, a row without any loss, text that is trained whole, and again."""
    from megatron_trainer.data.collate import RowShape, collate

    shape = RowShape(pad_id=0, padding_free=packed, sample_multiple=multiple, row_length=ROW)
    mixed = [_sample(50, untrained=30, scales=(0.3, 2.0, 0.0)), _sample(40, untrained=10)]
    rows = (mixed, [_sample(60, untrained=60)], [_sample(ROW, untrained=0)], mixed[::-1])
    return [collate(items, shape) for items in rows]


def compare(directory: Path, settings: dict[str, Any], *, packed: bool = True, virtual: int | None = None) -> Compared:
    """The same step twice: the host knows which tokens have a loss, and it does not."""
    from megatron_trainer import parallel
    from megatron_trainer.models.spec import read_model
    from megatron_trainjob.args.tree import TrainArgs

    args = TrainArgs(model=str(directory), packing=packed, use_distributed_optimizer=False, **settings)
    parallel.initialize(args, virtual_stages=virtual)
    spec = read_model(directory, args)
    multiple = 2 * args.context_parallel_size if args.context_parallel_size > 1 else 1
    batches = micro_batches(packed=packed, multiple=multiple)
    skipping = _step(args, spec, batches)
    whole = _step(args, spec, [replace(batch, has_loss_BT=None) for batch in batches])
    assert skipping.gradients.keys() == whole.gradients.keys() != set()
    return Compared(
        errors={name: _relative(skipping.gradients[name], each) for name, each in whole.gradients.items()},
        losses=(skipping.losses, whole.losses),
        rows=(skipping.rows, whole.rows),
        num_targets=skipping.num_targets,
    )


def _step(args: Any, spec: Any, batches: Any) -> Step:
    """Of a model of its own: a step changes the biases of experts."""
    from megatron_trainer import backend as backends
    from megatron_trainer.lora.names import unwrapped
    from megatron_trainer.pipeline import run_schedule
    from megatron_trainer.tasks import TASKS
    from megatron_trainer.train import setup
    from megatron_trainer.train.step import _counts, _reduce

    engine = setup.build_engine(args, spec, backends.select())
    task = TASKS["sft"](args, spec)
    rows: list[int] = []
    heads = [unwrapped(model).output_layer for model in engine.models if hasattr(unwrapped(model), "output_layer")]
    hooks = [head.register_forward_pre_hook(lambda _, given: rows.append(len(given[0]))) for head in heads]
    for chunk in engine.chunks:
        chunk.zero_grad_buffer()
    metrics = run_schedule(engine.chunks, task.forward_step, batches, is_training=True)
    for hook in hooks:
        hook.remove()
    counts = _counts(batches, backends.select())
    sums = _reduce(task, metrics, counts, backends.select(), stop_requested=False)
    gradients = {
        f"{number}.{name}": parameter.main_grad.clone()
        for number, model in enumerate(engine.models)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    return Step(losses=sums.losses, gradients=gradients, rows=tuple(rows), num_targets=sums.num_targets)


def _sample(length: int, *, untrained: int, scales: tuple[float, ...] = ()) -> Any:
    import numpy as np

    from megatron_trainer.data.values import IGNORED, Sample

    ids = np.random.default_rng(length).integers(0, 300, length, dtype=np.int32)
    labels = ids.copy()
    labels[:untrained] = IGNORED
    weights = np.resize(np.array(scales, np.float32), length) if scales else None
    return Sample(input_ids=ids, labels=labels, loss_scale=weights)


def _relative(ours: Any, theirs: Any) -> float:
    return float((ours - theirs).abs().max() / (theirs.abs().max() + 1e-12))
