"""The training loop: step, report, evaluate, save, until the iterations are done or someone asks to stop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import islice

import torch.distributed as dist

from megatron_trainer import parallel, stacks
from megatron_trainer.checkpoint.save import Saved
from megatron_trainer.data.ordering.sample import Segment, extended
from megatron_trainer.data.values import MicroBatch
from megatron_trainer.failure import TrainingError
from megatron_trainer.report import CheckpointRecord, EvalRecord, SlowRankRecord, StepRecord
from megatron_trainer.report.records import DATA_WAIT
from megatron_trainer.report.window import is_boundary
from megatron_trainer.state import TrainState
from megatron_trainer.train import garbage_collection as garbage
from megatron_trainer.train import optim, outputs
from megatron_trainer.train.enough_data import ended_before_first_step
from megatron_trainer.train.run_parts import Run
from megatron_trainer.train.schedule import learning_rate
from megatron_trainer.train.slow_ranks import SlowRank, SlowRanks
from megatron_trainer.train.step import StepResult, evaluate, train_step
from megatron_trainjob.checkpoint_folder import Manifest, inspect, iteration_folder
from megatron_trainjob.exit_codes import ExitCode

logger = logging.getLogger(__name__)

SHARE_BEFORE_STACKS = 0.9
"""Of ddp_timeout."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """Equal on all ranks. is_stopped: it was asked to stop, of which a rank that got no signal knows only from here."""

    state: TrainState
    is_stopped: bool


def fit(run: Run, state: TrainState) -> Ended:
    """Trains from `state` to the end and returns the final state; ends earlier when any rank is asked to stop.

    A rank that stays away from a collective of a step for ddp_timeout ends the run.

    Raises TrainingError: BAD_DATA when the data ends before the first step, LOSS_NOT_FINITE also when it
    skipped every step.
    """
    with parallel.waits_at_most(run.args.ddp_timeout):
        return _fit(run, state)


def _fit(run: Run, state: TrainState) -> Ended:
    batches = run.train.global_batches(state.consumed_samples, state.history, run.backend)
    saved = _saved(run, state)
    saved_at = state.iteration if saved or state.iteration == 0 else -1
    state = _evaluate_late(run, state, saved.loss if saved else None, is_saved=saved is not None)
    result: StepResult | None = None
    is_stopped = False
    slow_ranks = SlowRanks()
    while state.iteration < run.total_iterations:
        micro_batches, waited_s = _next(run, batches)
        if micro_batches is None:
            state, is_stopped = _at_end_of_data(run, state)
            break
        rate = learning_rate(run.schedule, state.iteration)
        optim.set_learning_rates(run.engine.optimizer, run.schedule, state.iteration, run.args.weight_decay)
        with _stacks_of_a_hang(run):
            is_requested = run.termination.is_requested
            result = train_step(run.engine, run.task, micro_batches, run.backend, stop_requested=is_requested)
        run.on_step()
        before, state = state, advance(state, result, run.train.step)
        run.termination.iteration = state.iteration
        _check_numbers(run, state, result)
        _report_step(run, state, result, rate, waited_s, slow_ranks)
        _tell(run, run.saver.poll())
        is_stopped = result.stop_requested
        if not is_stopped and _is_evaluated(run, before, state):
            state, is_stopped = validate(run, state)
        if not is_stopped and run.saves.is_due(run, before, state):
            saved_at = _save(run, state, _main_loss(run, result))
            is_stopped = not parallel.is_true_everywhere(not run.termination.is_requested, run.backend)
        if is_stopped:
            break
        if state.iteration < run.total_iterations:
            _save_in_memory(run, state, result)
    return _ended(run, state, _main_loss(run, result), saved_at, is_stopped=is_stopped)


def _ended(run: Run, state: TrainState, loss: float | None, saved_at: int, *, is_stopped: bool) -> Ended:
    """Saves what is not saved yet, and makes up for the last evaluation. loss: of the last step, if there was one."""
    is_stopped = is_stopped and state.iteration < run.total_iterations
    if saved_at != state.iteration and (run.saver.policy.on_termination or not is_stopped):
        saved_at = _save(run, state, loss)
    if not is_stopped:
        state = _evaluate_late(run, state, loss, is_saved=saved_at == state.iteration)
    _finish_saving(run)
    _check_updates(run, state, is_stopped=is_stopped)
    return Ended(state=state, is_stopped=is_stopped)


def _at_end_of_data(run: Run, state: TrainState) -> tuple[TrainState, bool]:
    """As validate."""
    if state.iteration == 0:
        raise ended_before_first_step(run.args)
    logger.warning("the data has ended at iteration=%d of the planned %d", state.iteration, run.total_iterations)
    return (state, False) if state.last_validation_iteration == state.iteration else validate(run, state)


def _saved(run: Run, state: TrainState) -> Manifest | None:
    """The manifest of this state's checkpoint in the save folder, None where it has none. Collective.

    A run that continues from memory or from another folder may have no step left, and none saved.
    """
    checkpoint = iteration_folder(run.saver.policy.save, state.iteration)
    found = [inspect(checkpoint).manifest if state.iteration and dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found, src=0)
    return found[0]


def _is_evaluated(run: Run, before: TrainState, state: TrainState) -> bool:
    return run.evaluations.is_due(run, before, state) or state.iteration == run.total_iterations


def _evaluate_late(run: Run, state: TrainState, loss: float | None, *, is_saved: bool) -> TrainState:
    """Makes up for an evaluation after this step, which a request to stop has left out; its checkpoint gets it too.

    loss: of the step. Nothing is lost where the pod is ended meanwhile.
    """
    step = run.train.step
    before = replace(
        state, iteration=state.iteration - 1, consumed_samples=max(0, state.consumed_samples - step.num_samples)
    )
    if state.iteration in (0, state.last_validation_iteration) or not _is_evaluated(run, before, state):
        return state
    evaluated, _ = validate(run, state, gives_way=False)
    if is_saved and evaluated.last_validation_iteration == state.iteration:
        _save(run, evaluated, loss)
    return evaluated


def _next(run: Run, batches: Iterator[list[MicroBatch]]) -> tuple[list[MicroBatch] | None, float]:
    """The next global batch, None at the end, and the seconds that it took to come."""
    asked = time.monotonic()
    with _stacks_of_a_hang(run):
        micro_batches = next(batches, None)
    return micro_batches, time.monotonic() - asked


def _stacks_of_a_hang(run: Run) -> AbstractContextManager[None]:
    """Every rank writes where it is before the collectives time out: also the one for which the others wait."""
    return stacks.written_after(SHARE_BEFORE_STACKS * run.args.ddp_timeout)


def _report_step(
    run: Run, state: TrainState, result: StepResult, rate: float, waited_s: float, slow_ranks: SlowRanks
) -> None:
    between_s = {DATA_WAIT: waited_s, **garbage.collect_when_due(run.args, state.iteration)}
    run.reporter.step(_record(run, state, result, rate, between_s))
    if slow_ranks.add(result.own_seconds, result.seconds):
        _tell_slow_rank(run, slow_ranks.slow)


def _tell_slow_rank(run: Run, slow: SlowRank | None) -> None:
    if slow is None:
        logger.info("no rank is far slower than the others any more")
        run.reporter.slow_rank(SlowRankRecord(rank=None))
        return
    run.reporter.slow_rank(SlowRankRecord(rank=slow.rank, ratio=slow.ratio))
    if dist.get_rank() in (0, slow.rank):
        logger.warning("rank %d has taken %.2f times the median of all ranks for minutes", slow.rank, slow.ratio)


def _finish_saving(run: Run) -> None:
    if run.saver.pending_iteration is not None:
        run.reporter.phase("saving")
    _tell(run, run.saver.finish())


def _check_updates(run: Run, state: TrainState, *, is_stopped: bool) -> None:
    """Raises if every step was skipped because of overflow, and warns if most were: skipped steps change nothing."""
    skipped, steps = state.skipped_iterations, state.iteration
    if is_stopped or not skipped:
        return
    scale = run.engine.optimizer.get_loss_scale().item()
    remedy = "train in bfloat16, use more steps, or start lower (extra_megatron_kwargs: {initial_loss_scale: 1024})"
    if skipped == steps:
        message = f"all {steps} steps were skipped: gradients overflow float16 at a loss scale of {scale:g}; {remedy}"
        raise TrainingError(ExitCode.LOSS_NOT_FINITE, message)
    if skipped > steps // 2:
        logger.warning("%d of %d steps were skipped: gradients overflowed float16; %s", skipped, steps, remedy)


def advance(state: TrainState, result: StepResult, read: Segment) -> TrainState:
    """The state after one more step, with the data that it consumed."""
    return replace(
        state,
        iteration=state.iteration + 1,
        consumed_samples=state.consumed_samples + read.num_samples,
        history=extended(state.history, read),
        consumed_tokens=state.consumed_tokens + result.num_tokens,
        skipped_iterations=state.skipped_iterations + result.is_skipped,
    )


def validate(run: Run, state: TrainState, *, gives_way: bool = True) -> tuple[TrainState, bool]:
    """Runs one evaluation, always over the same samples; returns the state, and whether it was asked to stop instead.

    The state is unchanged without evaluation. gives_way: to a request to stop, for steps that are not saved yet.
    """
    if run.validation is None or run.eval_iters == 0 or run.evaluations.strategy == "no":
        return state, False
    run.reporter.phase("evaluating")
    garbage.collect_around_evaluation(run.args)
    started = time.monotonic()
    rounds = islice(run.validation.global_batches(run.backend), run.eval_iters)
    result = evaluate(
        run.engine,
        run.task,
        rounds,
        run.backend,
        is_requested=lambda: gives_way and run.termination.is_requested,
    )
    if result is None:
        logger.warning("asked to stop: the evaluation at iteration=%d is left to the next start", state.iteration)
        return state, True
    run.reporter.evaluation(
        EvalRecord(
            iteration=state.iteration,
            losses=result.losses,
            num_samples=run.validation.num_items_in(run.eval_iters),
            seconds=time.monotonic() - started,
            consumed_samples=state.consumed_samples,
            tokens=result.num_tokens,
        )
    )
    run.reporter.phase("training")
    loss = result.losses[run.task.losses[0]]
    best = loss if state.best_validation_loss is None else min(loss, state.best_validation_loss)
    evaluated = replace(
        state,
        last_validation_loss=loss,
        best_validation_loss=best,
        last_validation_iteration=state.iteration,
        last_metric=_metric(run, result.losses),
    )
    return evaluated, False


def _metric(run: Run, losses: Mapping[str, float]) -> float | None:
    """Value of metric_for_best_model in an evaluation; None for the loss, and where the metric has no samples."""
    name = run.saver.policy.metric
    if name and name not in losses:
        logger.warning("the validation data has nothing to count for metric_for_best_model=%s", name)
    return losses.get(name) if name else None


def _main_loss(run: Run, result: StepResult | None) -> float | None:
    return result.losses[run.task.losses[0]] if result else None


def _save(run: Run, state: TrainState, loss: float | None) -> int:
    """Saves, or starts an async save; returns the saved iteration. Waits for a previous save that is still pending.

    loss: of the last step, where there was one.
    """
    run.reporter.phase("saving")
    pending = run.saver.pending_iteration
    if pending is not None:
        logger.warning("iteration=%d waits for the checkpoint of iteration=%d to be written", state.iteration, pending)
        _tell(run, run.saver.finish())
    run.saver.start(state, loss)
    if not run.args.async_save:
        _tell(run, run.saver.finish())
    if run.args.save_safetensors:
        with parallel.waits_at_most(parallel.PATIENCE_S):
            outputs.write_safetensors(run, state.iteration)
    run.reporter.phase("training")
    return state.iteration


def _save_in_memory(run: Run, state: TrainState, result: StepResult) -> None:
    if run.memory is not None and run.memory.save_if_due(state, result.losses[run.task.losses[0]]):
        run.reporter.remember()


def _tell(run: Run, saved: Saved | None) -> None:
    """Reports a checkpoint that has been published."""
    if saved is not None:
        record = CheckpointRecord(iteration=saved.iteration, path=str(saved.path), seconds=saved.waited_s)
        run.reporter.checkpoint(record)


def _check_numbers(run: Run, state: TrainState, result: StepResult) -> None:
    """Raises for a non-finite loss or gradient, which never recovers: the weights have it, and a checkpoint would too.

    With fp16 the loss scaler skips the overflowing step instead.
    """
    name = run.task.losses[0]
    found = {name: result.losses[name], "grad_norm": result.gradient_norm or 0.0}
    wrong = next((name for name, value in found.items() if not math.isfinite(value)), None)
    if wrong is not None and not result.is_skipped:
        _tell(run, run.saver.finish())  # the state before may be worth inspecting
        message = f"step {state.iteration}: {wrong} is {found[wrong]}; lower lr or check the data of this step"
        raise TrainingError(ExitCode.LOSS_NOT_FINITE, message)


def _record(run: Run, state: TrainState, result: StepResult, rate: float, between_s: Mapping[str, float]) -> StepRecord:
    """between_s: what passed between this step and the one before, which counts as its time too."""
    return StepRecord(
        iteration=state.iteration,
        losses=result.losses,
        pooled_losses=result.channel_losses,
        learning_rate=rate,
        tokens=result.num_tokens,
        seconds=result.seconds + sum(between_s.values()),
        consumed_samples=state.consumed_samples,
        gradient_norm=result.gradient_norm,
        num_zeros_in_gradient=result.num_zeros_in_gradient,
        loss_scale=run.engine.optimizer.get_loss_scale().item(),
        is_skipped=result.is_skipped,
        has_nan=not all(math.isfinite(loss) for loss in result.losses.values()),
        flops=_flops(run, result),
        params_norm=run.engine.params_norm() if _is_logged(run, state) else None,
        memory_bytes=run.backend.peak_memory_bytes(),
        timers_s={**result.timers_s, **between_s},
    )


def _flops(run: Run, result: StepResult) -> float:
    """Model FLOPs of the step over all ranks."""
    scores = run.flops_per_pair * result.num_pairs + run.flops_per_near_pair * result.num_near_pairs
    tokens = run.flops_per_token * result.num_tokens + run.flops_per_target * result.num_targets
    return tokens + scores + run.flops_per_patch * result.num_patches


def _is_logged(run: Run, state: TrainState) -> bool:
    """Whether the norm of the parameters, which is expensive, is logged at this step."""
    ends_window = is_boundary(state.iteration, interval=run.args.log_interval, total_iterations=run.total_iterations)
    return run.args.log_params_norm and ends_window
