"""Saves checkpoints, one at a time, synchronously or in the background of training.

All ranks write to a temporary folder; once every rank's files and the manifest are written, the first rank publishes
the checkpoint by renaming. A crash at any moment leaves either no folder of that iteration or a complete one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
from megatron.core.dist_checkpointing.core import CheckpointingException
from torch.distributed.checkpoint.api import CheckpointException

from megatron_trainer import clock, lost_peer, out_of_memory, parallel, silent_rank
from megatron_trainer.backend import Backend
from megatron_trainer.checkpoint import contents, folder, shards
from megatron_trainer.checkpoint.folder import Owner
from megatron_trainer.checkpoint.shards import Shards, Staging, Written
from megatron_trainer.engine import Engine
from megatron_trainer.failure import TrainingError
from megatron_trainer.state import TrainState
from megatron_trainjob.checkpoint_folder import RECORD, FileRecord, Manifest, iteration_folder, record_of
from megatron_trainjob.exit_codes import ExitCode


@dataclass(frozen=True, kw_only=True)
class SavePolicy:
    """Contents and labels of a checkpoint, and how many are kept (None: all).

    owner: the writer, as claimed at the start. in_background: files are written while training continues.
    on_termination: a run that is asked to stop saves once more. record: the text of args.json, stored in each
    checkpoint. num_files: per rank. metric: selects the best checkpoint where that is not the validation loss.
    """

    save: Path
    layout: dict[str, int]
    train_type: str
    with_optimizer: bool
    with_rng: bool
    owner: Owner
    in_background: bool
    on_termination: bool
    limit: int | None
    record: str
    num_files: int = 1
    metric: str = ""
    greater_is_better: bool = False


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A published checkpoint, and how long training was blocked by it."""

    iteration: int
    path: Path
    waited_s: float


@dataclass(kw_only=True)
class _Pending:
    """A checkpoint that is being written."""

    state: TrainState
    loss: float | None
    shards: Shards
    written: Future[Written]
    waited_s: float


class Saver:
    """Writes one checkpoint at a time. Every method is collective."""

    def __init__(self, engine: Engine, backend: Backend, policy: SavePolicy) -> None:
        self.policy = policy
        self._engine = engine
        self._backend = backend
        self._background = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._staging = Staging(backend) if policy.in_background else None
        self._pending: _Pending | None = None

    @property
    def pending_iteration(self) -> int | None:
        """The iteration whose checkpoint is being written."""
        return self._pending.state.iteration if self._pending else None

    def start(self, state: TrainState, loss: float | None) -> None:
        """Captures the state and starts writing it. Call `finish` first if a save is pending.

        Raises:
            TrainingError: a rank cannot write; older checkpoints are untouched.
        """
        assert self._pending is None, "finish the previous checkpoint first"
        with parallel.waits_at_most(parallel.PATIENCE_S):
            self._start(state, loss)

    def _start(self, state: TrainState, loss: float | None) -> None:
        started = time.monotonic()
        aside = folder.folder_aside(self.policy.save, state.iteration, self.policy.owner)
        self._on_all_ranks(lambda: _make(aside), aside)
        with self._ending_alone(aside):
            self._engine.gather_parameters()
            wanted = captured(self._engine, state, self._backend, self.policy)
            planned = shards.plan(wanted, aside, num_files=self.policy.num_files)
        own = self._on_all_ranks(lambda: planned.shards(self._staging), aside)
        self._pending = _Pending(
            state=state,
            loss=loss,
            shards=own,
            written=self._background.submit(own.write),
            waited_s=time.monotonic() - started,
        )

    def poll(self) -> Saved | None:
        """Publishes the pending checkpoint if every rank has written its part; free if none is pending."""
        pending = self._pending
        if pending is None or not parallel.is_true_everywhere(pending.written.done(), self._backend):
            return None
        return self.finish()

    def finish(self) -> Saved | None:
        """Waits for the pending checkpoint and publishes it; None if none is pending.

        Raises:
            TrainingError: a rank could not write (disk full, volume gone); older checkpoints are untouched.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return None
        with parallel.waits_at_most(parallel.PATIENCE_S):
            return self._finish(pending)

    def _finish(self, pending: _Pending) -> Saved:
        started = time.monotonic()
        aside = pending.shards.folder
        own = self._on_all_ranks(pending.written.result, aside)
        parts: list[Written] | None = [own] * dist.get_world_size() if dist.get_rank() == 0 else None
        dist.gather_object(own, parts)
        self._on_all_ranks(lambda: self._publish(pending, parts), aside)
        return Saved(
            iteration=pending.state.iteration,
            path=iteration_folder(self.policy.save, pending.state.iteration),
            waited_s=pending.waited_s + time.monotonic() - started,
        )

    def _publish(self, pending: _Pending, parts: list[Written] | None) -> None:
        if parts is None:
            return
        state, policy = pending.state, self.policy
        is_validated = state.last_validation_iteration == state.iteration
        manifest = Manifest(
            iteration=state.iteration,
            layout=policy.layout,
            world_size=dist.get_world_size(),
            train_type=policy.train_type,
            has_optimizer=policy.with_optimizer,
            has_rng=policy.with_rng,
            loss=pending.loss,
            validation_loss=state.last_validation_loss if is_validated else None,
            saved_at_epoch_s=clock.epoch_s(),
            metric=policy.metric,
            metric_value=state.last_metric if is_validated else None,
            greater_is_better=policy.greater_is_better,
            run=state.run,
            files={**pending.shards.complete(parts), **_write_record(pending.shards.folder, policy.record)},
        )
        folder.publish(pending.shards.folder, manifest, policy.owner)
        folder.point(policy.save, state.iteration, policy.owner)
        if policy.limit is not None:
            folder.prune(policy.save, state.iteration, policy.limit, policy.owner)

    def _on_all_ranks[Result](self, action: Callable[[], Result], aside: Path) -> Result:
        """The action's result; a failure on any rank fails on all, so that no rank waits for one that gave up.

        The action is not collective: a rank that fails would come here while others wait inside (`_ending_alone`).
        """
        error: BaseException | None = None  # of which torch's CheckpointException is one
        try:
            with folder.owned(self.policy.save, self.policy.owner):
                result = action()
        except (Exception, CheckpointException) as err:  # noqa: BLE001 - whatever it is, the others have to hear of it
            error = err
        if parallel.is_true_everywhere(error is None, self._backend):
            return result
        own = (_words(error), _exit_code(error)) if error else ("", ExitCode.OK)
        found = [own] * dist.get_world_size()
        dist.all_gather_object(found, own)
        if dist.get_rank() == 0:
            folder.drop(aside, self.policy.owner)
        reason = "; ".join(f"rank {rank}: {text}" for rank, (text, _) in enumerate(found) if text)
        codes = [code for text, code in found if text]
        code = ExitCode.OUT_OF_DEVICE_MEMORY if ExitCode.OUT_OF_DEVICE_MEMORY in codes else codes[0]
        raise TrainingError(code, self._message(reason)) from error

    @contextlib.contextmanager
    def _ending_alone(self, aside: Path) -> Iterator[None]:
        """Context of what is collective itself. A failure here ends this rank at once, with its own words.

        The others may be waiting inside, where nothing that this rank could say reaches them: they end because it does.
        """
        try:
            with folder.owned(self.policy.save, self.policy.owner):
                yield
        except (Exception, CheckpointException) as err:
            if dist.get_rank() == 0:
                folder.drop(aside, self.policy.owner)
            if lost_peer.is_cause(err) or silent_rank.is_cause(err):
                raise
            raise TrainingError(_exit_code(err), self._message(f"rank {dist.get_rank()}: {_words(err)}")) from err

    def _message(self, reason: str) -> str:
        return f"cannot write a checkpoint to {self.policy.save}: {reason}; earlier ones are untouched"


def _words(error: BaseException) -> str:
    known = isinstance(error, OSError | RuntimeError | CheckpointException | CheckpointingException | TrainingError)
    return str(error) if known else f"{type(error).__name__}: {error}"


def _exit_code(error: BaseException) -> ExitCode:
    """Of a failed save: what a retry cannot help has a code that says so, what is a bug of a program has not."""
    if out_of_memory.is_cause(error):
        return ExitCode.OUT_OF_DEVICE_MEMORY
    if isinstance(error, TrainingError):
        return error.exit_code
    is_known = isinstance(error, OSError | RuntimeError | CheckpointException | CheckpointingException)
    return ExitCode.OUTPUT_NOT_WRITABLE if is_known else ExitCode.ERROR


def _make(aside: Path) -> None:
    if dist.get_rank() == 0:
        folder.make_aside(aside)


def _write_record(aside: Path, record: str) -> dict[str, FileRecord]:
    folder.replace_text(aside / RECORD, record)
    return {RECORD: record_of(aside / RECORD)}


def captured(engine: Engine, state: TrainState, backend: Backend, policy: SavePolicy) -> contents.StateDict:
    """What a checkpoint of this state holds, as sharded tensors that refer to the live ones. Collective."""
    models = contents.model_state(engine, "trainable" if policy.train_type == "lora" else "base")
    saved = {**models, "train_state": contents.train_state(state)}
    if policy.with_optimizer:
        saved["optimizer"] = contents.optimizer_state(engine, models, is_loading=False)
    if policy.with_rng:
        saved["rng_state"] = contents.random_state(backend)
    return saved
