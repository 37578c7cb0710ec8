"""Copies the state of a run into the memory of its nodes every few steps, beside the checkpoints in the save folder.

Training waits for the copy into host memory only. A thread writes the files, sends them to the next node, and publishes
the checkpoint once every node has its part; all its collectives are over a group of its own. Two checkpoints are there
at most: the newest that is complete everywhere, and the one that is being written. A failure turns this off with a
warning and does not end the run, except that of a rank for which others wait in the midst of a collective.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from megatron_trainer import clock
from megatron_trainer.backend import Backend
from megatron_trainer.checkpoint import shards
from megatron_trainer.checkpoint.memory import Memory
from megatron_trainer.checkpoint.nodes import PeerFailure
from megatron_trainer.checkpoint.save import SavePolicy, captured
from megatron_trainer.checkpoint.shards import INDEX_FILES, Shards, Staging, Written
from megatron_trainer.engine import Engine
from megatron_trainer.megatron.patches.sharding_check import WrongShards
from megatron_trainer.state import TrainState
from megatron_trainjob.checkpoint_folder import MANIFEST, RECORD, FileRecord, Manifest, record_of

logger = logging.getLogger(__name__)

FAILED, RUNNING, DONE = 0, 1, 2
GIB = 1024**3
GENERATIONS = 2


class MemorySaver:
    """Makes one memory checkpoint at a time. Every public method is collective.

    kept: the iteration of a checkpoint that is complete on all nodes already.
    """

    def __init__(
        self, engine: Engine, backend: Backend, policy: SavePolicy, memory: Memory, *, kept: int | None
    ) -> None:
        self._engine, self._backend, self._policy, self._memory = engine, backend, policy, memory
        self._staging = Staging(backend)
        self._background = ThreadPoolExecutor(max_workers=1, thread_name_prefix="memory-checkpoint")
        self._running: Future[None] | None = None
        self._kept = kept
        self._is_off = False
        self._has_told_of_delay = False

    def save_if_due(self, state: TrainState, loss: float | None) -> bool:
        """Starts a memory checkpoint after every interval; left out while the one before is being written.

        Whether one was started.
        """
        if self._is_off or state.iteration % self._memory.interval:
            return False
        if self._running is not None and not self._is_ready(state.iteration):
            return False
        planned = self._captured(state)
        if planned is not None:
            self._running = self._background.submit(self._write, planned, state, loss)
        return planned is not None

    def close(self, *, forget: bool) -> None:
        """Waits for the checkpoint that is being written. forget: the save folder has a newer one; frees the memory."""
        if self._running is not None and not self._is_off:
            self._running.exception()
        self._memory.leave(forget=forget)

    def _is_ready(self, iteration: int) -> bool:
        """Whether the checkpoint before is complete on every rank."""
        assert self._running is not None
        own = RUNNING
        if self._running.done():
            own = FAILED if self._running.exception() else DONE
        status = self._least(own)
        if status == FAILED:
            self._turn_off(self._running.exception() if self._running.done() else None)
        elif status == RUNNING and not self._has_told_of_delay:
            self._has_told_of_delay = True
            logger.warning(
                "no memory checkpoint at iteration=%d and whenever the one before is still being written; "
                "raise spec.checkpoint.memory.intervalIterations",
                iteration,
            )
        return status == DONE

    def _captured(self, state: TrainState) -> Shards | None:
        """This rank's part of the state, copied into host memory; None where a rank could not.

        Raises:
            Exception: this rank failed while the others may be waiting for it in a collective; they end with it.
        """
        aside = self._memory.place.aside(state.iteration)
        if not self._on_all_ranks(lambda: aside.mkdir(exist_ok=True)):
            return None
        self._engine.gather_parameters()
        wanted = captured(self._engine, state, self._backend, self._policy)
        try:
            planned = shards.plan(wanted, aside)
        except (CheckpointException, WrongShards) as err:  # on all ranks
            self._turn_off(err)
            return None
        own: list[Shards] = []
        is_copied = self._on_all_ranks(lambda: own.append(planned.shards(self._staging)))
        return own[0] if is_copied else None

    def _on_all_ranks(self, action: Callable[[], None]) -> bool:
        """Whether an action that is not collective succeeded on every rank; turns memory checkpoints off if not."""
        problem: BaseException | None = None
        try:
            action()
        except Exception as err:  # noqa: BLE001 - the run does not depend on it
            problem = err
        if self._least(FAILED if problem else DONE) == DONE:
            return True
        self._turn_off(problem)
        return False

    def _least(self, status: int) -> int:
        """The least status of any rank."""
        flag = torch.tensor([status], device=self._backend.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MIN)
        return int(flag.item())

    def _turn_off(self, problem: BaseException | None) -> None:
        self._is_off = True
        if problem is not None:
            logger.warning("no more checkpoints in memory; those in the save folder continue: %s", problem)

    def _write(self, planned: Shards, state: TrainState, loss: float | None) -> None:
        """What the thread does. Collective over its own group.

        Raises:
            PeerFailure: the same on all ranks; what was written has been removed.
        """
        try:
            self._write_parts(planned, state, loss)
        except PeerFailure:
            if self._memory.nodes.is_first_of_node:
                shutil.rmtree(planned.folder, ignore_errors=True)
            raise

    def _write_parts(self, planned: Shards, state: TrainState, loss: float | None) -> None:
        nodes, place = self._memory.nodes, self._memory.place
        nodes.agreed(lambda: place.keep_only(self._kept) if nodes.is_first_of_node else None)
        parts = nodes.gathered(nodes.agreed(planned.write))
        nodes.agreed(lambda: self._check_room(parts))
        index = nodes.from_rank(0, nodes.agreed(lambda: self._index(planned, parts, state, loss)))
        nodes.agreed(lambda: self._copy_of_neighbor(planned.folder, parts))
        nodes.agreed(lambda: self._publish(planned.folder, index, state.iteration))
        self._kept = state.iteration

    def _check_room(self, parts: Sequence[Written]) -> None:
        """Raises MemoryError if two generations of this node's files and its neighbor's exceed the limit."""
        nodes, limit = self._memory.nodes, self._memory.limit_bytes
        sizes = [0] * nodes.num_nodes
        for rank, part in enumerate(parts):
            sizes[nodes.of(rank)] += sum(record.size_bytes for record in part.files.values())
        held = sizes[nodes.node] + (sizes[nodes.node - 1] if nodes.num_nodes > 1 else 0)
        if limit is not None and GENERATIONS * held > limit:
            raise MemoryError(
                f"{GENERATIONS} generations need {GENERATIONS * held / GIB:.2f} GiB on a node; "
                f"spec.checkpoint.memory.sizeLimit is {limit / GIB:.2f} GiB"
            )

    def _index(
        self, planned: Shards, parts: Sequence[Written], state: TrainState, loss: float | None
    ) -> dict[str, bytes] | None:
        """The small files that every node has, written by the first rank: index, arguments and manifest."""
        if dist.get_rank() != 0:
            return None
        files = planned.complete(parts)
        (planned.folder / RECORD).write_text(self._policy.record)
        files |= {RECORD: record_of(planned.folder / RECORD)}
        manifest = self._manifest(files, state, loss)
        small = {name: (planned.folder / name).read_bytes() for name in (*INDEX_FILES, RECORD)}
        return {**small, MANIFEST: manifest.to_text().encode()}

    def _manifest(self, files: Mapping[str, FileRecord], state: TrainState, loss: float | None) -> Manifest:
        is_validated = state.last_validation_iteration == state.iteration
        return Manifest(
            iteration=state.iteration,
            layout=self._policy.layout,
            world_size=dist.get_world_size(),
            train_type=self._policy.train_type,
            has_optimizer=self._policy.with_optimizer,
            has_rng=self._policy.with_rng,
            loss=loss,
            validation_loss=state.last_validation_loss if is_validated else None,
            saved_at_epoch_s=clock.epoch_s(),
            files=files,
            run=state.run,
        )

    def _copy_of_neighbor(self, aside: Path, parts: Sequence[Written]) -> None:
        """Every rank sends its files to the rank with its place on the next node, and keeps those of the one before."""
        nodes = self._memory.nodes
        if nodes.num_nodes == 1:
            return
        source = nodes.peer(-1)
        own = {aside / name: record for name, record in parts[dist.get_rank()].files.items()}
        theirs = {aside / name: record for name, record in parts[source].files.items()}
        problems = nodes.exchange(own, nodes.peer(1), theirs, source)
        if problems:
            raise OSError("; ".join(problems))

    def _publish(self, aside: Path, index: Mapping[str, bytes], iteration: int) -> None:
        if not self._memory.nodes.is_first_of_node:
            return
        for name, content in index.items():
            (aside / name).write_bytes(content)
        self._memory.place.publish(iteration)
