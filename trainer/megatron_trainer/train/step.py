"""One optimizer step and one evaluation round: Megatron's schedule over the micro-batches, then reduced metrics."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer import TransformerConfig

from megatron_trainer import parallel
from megatron_trainer.backend import Backend, Stopwatch
from megatron_trainer.data.values import MicroBatch
from megatron_trainer.engine import Engine
from megatron_trainer.pipeline import run_schedule
from megatron_trainer.tasks import Task
from megatron_trainer.train import router_losses


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """Equal on all ranks. losses: means over the global batch in nats, including those of the expert routers.

    num_tokens: real ones, without padding. num_targets: those with a loss.
    channel_losses: sum and count over the global batch of each channel that it has.
    num_pairs: pairs of tokens of which one attends to the other, num_near_pairs: those within the window of sliding
    attention, num_patches: of images and videos; for counting FLOPs.
    own_seconds: of each rank's forward and backward passes, up to where it first waits for the others' gradients.
    """

    losses: Mapping[str, float]
    channel_losses: Mapping[str, tuple[float, float]]
    gradient_norm: float | None
    num_zeros_in_gradient: float | None
    is_skipped: bool
    stop_requested: bool
    num_tokens: int
    num_targets: int
    num_pairs: int
    num_near_pairs: int
    num_patches: int
    seconds: float
    own_seconds: tuple[float, ...]
    timers_s: Mapping[str, float]


def train_step(
    engine: Engine, task: Task, batches: Sequence[MicroBatch], backend: Backend, *, stop_requested: bool
) -> StepResult:
    """Forward, backward and update over this rank's micro-batches of one global batch. Collective."""
    started = time.monotonic()
    batches = task.prepare(batches)
    for chunk in engine.chunks:
        chunk.zero_grad_buffer()
    engine.optimizer.zero_grad()
    own = backend.stopwatch()
    with _stopped_before_gradients_are_reduced(own, engine.config), engine.defers_scaling():
        metrics = run_schedule(engine.chunks, task.forward_step, batches, is_training=True)
    computed = time.monotonic()
    updated, gradient_norm, num_zeros = engine.update()
    of_routers = router_losses.take(engine.config, backend.device)
    window = 0 if engine.config.window_size is None else engine.config.window_size[0] + 1
    sums = _reduce(
        task,
        metrics,
        _counts(batches, backend, window=window),
        backend,
        stop_requested=stop_requested,
        own_s=own.seconds(),
        further=of_routers,
    )
    channel_losses = _channel_losses(task, metrics)
    backend.synchronize()
    ended = time.monotonic()
    return StepResult(
        losses=sums.losses | router_losses.means(engine.config, sums.further, len(batches)),
        channel_losses=channel_losses,
        gradient_norm=None if gradient_norm is None else float(gradient_norm),
        num_zeros_in_gradient=None if num_zeros is None else float(num_zeros),
        is_skipped=not updated,
        stop_requested=sums.stop_requested,
        num_tokens=sums.num_tokens,
        num_targets=sums.num_targets,
        num_pairs=sums.num_pairs,
        num_near_pairs=sums.num_near_pairs,
        num_patches=sums.num_patches,
        seconds=ended - started,
        own_seconds=sums.own_seconds,
        timers_s={"forward-backward": computed - started, "optimizer": ended - computed},
    )


@contextlib.contextmanager
def _stopped_before_gradients_are_reduced(watch: Stopwatch, config: TransformerConfig) -> Iterator[None]:
    finalize = config.finalize_model_grads_func
    watch.stop()  # for a schedule that never reduces

    def stop_and_finalize(*args: object, **kwargs: object) -> None:
        watch.stop()
        finalize(*args, **kwargs)

    config.finalize_model_grads_func = stop_and_finalize
    try:
        yield
    finally:
        config.finalize_model_grads_func = finalize


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Equal on all ranks. losses: means over all batches with equal weight per token, including those of channels.

    num_tokens: real ones of all ranks.
    """

    losses: dict[str, float]
    num_tokens: int


def evaluate(
    engine: Engine,
    task: Task,
    rounds: Iterator[Sequence[MicroBatch]],
    backend: Backend,
    *,
    is_requested: Callable[[], bool],
) -> Evaluation | None:
    """Forward passes over the global batches of the rounds; None if any rank is asked to stop meanwhile. Collective.

    The ranks meet after each round, also because copies of the model need nothing of each other before the end: what
    one of them is late by would add up to more than ddp_timeout.
    """
    for chunk in engine.chunks:
        chunk.eval()
    all_metrics: list[Mapping[str, torch.Tensor]] = []
    counts = _counts((), backend)  # of micro-batches that are not kept: with their images they would fill a GPU
    is_whole = True
    with torch.no_grad():
        for batches in rounds:
            prepared = task.prepare(batches)
            all_metrics.extend(run_schedule(engine.chunks, task.forward_step, prepared, is_training=False))
            counts += _counts(batches, backend)
            is_whole = parallel.is_true_everywhere(not is_requested(), backend)
            if not is_whole:
                break
    for chunk in engine.chunks:
        chunk.train()
    if not is_whole:
        return None
    sums = _reduce(task, all_metrics, counts, backend, stop_requested=False)
    channel_losses = {name: _ratio(*pair) for name, pair in _channel_losses(task, all_metrics).items()}
    return Evaluation(losses={**sums.losses, **channel_losses}, num_tokens=sums.num_tokens)


@dataclass(frozen=True, kw_only=True)
class _Sums:
    """The sums that all ranks have after one all-reduce."""

    losses: dict[str, float]
    num_tokens: int
    num_targets: int
    num_pairs: int
    num_near_pairs: int
    num_patches: int
    stop_requested: bool
    own_seconds: tuple[float, ...]
    further: tuple[float, ...]


def _reduce(
    task: Task,
    metrics: Sequence[Mapping[str, torch.Tensor]],
    counts: torch.Tensor,
    backend: Backend,
    *,
    stop_requested: bool,
    own_s: float = 0.0,
    further: torch.Tensor | None = None,
) -> _Sums:
    """Sums over the ranks, in one collective and one copy to the host, for which alone a step waits after its update.

    Of ranks with the same values one contributes; context-parallel ranks hold different tokens. counts: of `_counts`.
    own_s: of this rank. further: numbers of which every rank contributes its own, float64.
    """
    names = task.losses
    num_sums, num_ranks = 2 * len(names) + 6, dist.get_world_size()
    num_further = 0 if further is None else len(further)
    everything = torch.zeros(num_sums + num_ranks + num_further, dtype=torch.float64, device=backend.device)
    totals = everything[:num_sums]
    everything[num_sums + dist.get_rank()] = own_s
    if _contributes():
        for index, name in enumerate(names):
            totals[2 * index : 2 * index + 2] = sum(m[name].double() for m in metrics if name in m)
        if parallel_state.get_context_parallel_rank() == 0:
            totals[-6:-1] = counts
    totals[-1] = float(stop_requested)
    if further is not None:
        everything[num_sums + num_ranks :] = further
    dist.all_reduce(everything)
    found = everything.tolist()
    values, own_seconds = found[:num_sums], tuple(found[num_sums : num_sums + num_ranks])
    pairs = {name: (values[2 * index], values[2 * index + 1]) for index, name in enumerate(names)}
    means = task.finish({name: _ratio(*pair) for name, pair in pairs.items() if pair[1] or name == names[0]})
    return _Sums(
        losses=dict(means),
        num_tokens=int(values[-3]),
        num_targets=int(values[-6]),
        num_pairs=int(values[-2]),
        num_near_pairs=int(values[-5]),
        num_patches=int(values[-4]),
        stop_requested=values[-1] > 0,
        own_seconds=own_seconds,
        further=tuple(found[num_sums + num_ranks :]),
    )


def _counts(batches: Sequence[MicroBatch], backend: Backend, *, window: int = 0) -> torch.Tensor:
    """Targets, pairs within the window, patches, tokens and pairs of whole micro-batches, float64 [5].

    window: of sliding attention, 0 without.
    """
    counts = torch.zeros(5, dtype=torch.float64, device=backend.device)
    counts[0] = sum(batch.num_targets for batch in batches)
    counts[1] = sum(batch.num_near_pairs(window) for batch in batches) if window else 0
    counts[2] = sum(batch.num_patches for batch in batches)
    counts[3] = sum(batch.num_tokens for batch in batches)
    counts[4] = sum(batch.num_pairs for batch in batches)
    return counts


def _contributes() -> bool:
    """Whether this rank contributes its metrics: of ranks with the same values, exactly one does."""
    is_last_stage = parallel_state.is_pipeline_last_stage(ignore_virtual=True)
    return bool(is_last_stage) and parallel_state.get_tensor_model_parallel_rank() == 0


def _channel_losses(task: Task, metrics: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, tuple[float, float]]:
    """Sum and count of each channel over all ranks. Collective if the task has channels."""
    if not task.has_channels:
        return {}
    own: dict[str, torch.Tensor] = {}
    for name, pair in (entry for found in metrics for entry in found.items()):
        if name not in task.losses and _contributes():
            own[name] = own[name] + pair if name in own else pair
    pairs = torch.stack(list(own.values())).tolist() if own else []
    return parallel.sums_by_name({name: (total, count) for name, (total, count) in zip(own, pairs, strict=True)})


def _ratio(total: float, count: float) -> float:
    return total / count if count else 0.0
