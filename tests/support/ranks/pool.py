"""Ranks for tests: worker processes that stay up over all tests of a run and talk through gloo.

`gloo_ranks(2).run(function, *args)` calls the function on two ranks and returns what each of them returned.
One pool serves every size: a size joins the first workers of the pool. Workers are forked from one process that
has imported everything (imported.py): 9 s of CPU once a pytest process, and not once a worker.
One rank is a worker too: the CPU backend changes its whole process, and pytest's own stays clean.

The function runs with the CPU backend installed and the process group joined; parallel groups are its own affair.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import gc
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

RUN_TIMEOUT_S = 300.0
_NOT_JOINED = ("in join", "connectFullMesh")
MAX_THREADS = 800
"""A worker with more is replaced: gloo groups of past runs keep threads that poll, and slow the whole machine."""
_GRACE_S = 5.0
_STOP_TIMEOUT_S = 5.0
_LOG_CHARACTERS = 4000


class RankError(AssertionError):
    """A rank raised, died or did not end in time; the message holds its traceback."""


@dataclass
class _Worker:
    """One process and the line to it."""

    process: ForkServerProcess
    connection: Connection
    log: Path

    def num_threads(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/task").glob("*")))

    def log_tail(self) -> str:
        return self.log.read_text(errors="replace")[-_LOG_CHARACTERS:]


@dataclass
class _Pool:
    """All workers of this test run."""

    folder: Path
    workers: list[_Worker] = field(default_factory=list)
    num_runs: int = 0

    def grow(self, size: int) -> None:
        """Starts what is missing."""
        for number in range(len(self.workers), size):
            self.workers.append(_start(self.folder / f"worker-{number}.log"))

    def stop(self) -> None:
        """Asks all workers to end, then makes them."""
        for worker in self.workers:
            with contextlib.suppress(OSError):
                worker.connection.send_bytes(pickle.dumps(None))
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        for worker in self.workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.connection.close()
        self.workers.clear()


_pool: _Pool | None = None


def _the_pool() -> _Pool:
    global _pool
    if _pool is None:
        folder = tempfile.TemporaryDirectory(prefix="ranks-")
        _pool = _Pool(Path(folder.name))
        atexit.register(folder.cleanup)
        atexit.register(_pool.stop)
    return _pool


@dataclass(frozen=True)
class GlooRanks:
    """`size` ranks."""

    size: int

    def run(
        self, function: Callable[..., Any], *args: Any, timeout_s: float = RUN_TIMEOUT_S, **kwargs: Any
    ) -> list[Any]:
        """What each rank returned, in rank order. `function` is one of a module: it is pickled by its name.

        Raises RankError when a rank raised (its traceback is in the message), died, or did not end in time (the
        message says where each rank stood). A failed run ends the pool; the next run starts a new one. Ranks that
        did not find each other have begun nothing: gloo's connection may be reset on a busy machine, so they try once
        more.
        """
        try:
            return self._run(function, args, kwargs, timeout_s)
        except RankError as error:
            if not all(text in str(error) for text in _NOT_JOINED):
                raise
        return self._run(function, args, kwargs, timeout_s)

    def _run(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], timeout_s: float
    ) -> list[Any]:
        pool = _the_pool()
        if any(worker.num_threads() > MAX_THREADS for worker in pool.workers):
            pool.stop()
        pool.grow(self.size)
        pool.num_runs += 1
        store = pool.folder / f"store-{pool.num_runs}"
        workers = pool.workers[: self.size]
        for rank, worker in enumerate(workers):
            task = (function, args, kwargs, rank, self.size, str(store), timeout_s)
            worker.connection.send_bytes(pickle.dumps(task))
        results, failures = _collect(workers, timeout_s)
        store.unlink(missing_ok=True)
        late = [rank for rank in range(self.size) if rank not in results and rank not in failures]
        message = _report(workers, failures, late, timeout_s)
        if message:  # one rank may have left its groups while another still joined them: no run follows in them
            pool.stop()
            raise RankError(message)
        if not all(worker.process.is_alive() for worker in workers):
            pool.stop()
        return [results[rank] for rank in range(self.size)]


def gloo_ranks(size: int) -> GlooRanks:
    """Ranks 0 to size - 1."""
    return GlooRanks(size)


@cache
def forks() -> ForkServerContext:
    """Where workers are forked from; it has imported what they need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.ranks.imported"])
    environment = {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": "1",
        "MTJ_DEVICE": "cpu",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    with patch.dict(os.environ, environment):
        forkserver.ensure_running()
    return context


def _start(log: Path) -> _Worker:
    ours, theirs = multiprocessing.Pipe()
    process = forks().Process(target=_serve, args=(theirs, log))
    process.start()
    theirs.close()
    return _Worker(process, ours, log)


def _collect(workers: list[_Worker], timeout_s: float) -> tuple[dict[int, Any], dict[int, str]]:
    """Results and failures by rank; a rank that did not answer in time is in neither."""
    results: dict[int, Any] = {}
    failures: dict[int, str] = {}
    rank_of = {worker.connection: rank for rank, worker in enumerate(workers)}
    deadline = time.monotonic() + timeout_s
    while waiting := [c for c, rank in rank_of.items() if rank not in results and rank not in failures]:
        ready = wait(waiting, max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        for connection in ready:
            rank = rank_of[connection]  # type: ignore[index]
            _receive(rank, workers[rank], results, failures)
        if failures:  # the others may wait for the failed rank forever; give them a moment to say what they saw
            deadline = min(deadline, time.monotonic() + _GRACE_S)
    return results, failures


def _receive(rank: int, worker: _Worker, results: dict[int, Any], failures: dict[int, str]) -> None:
    try:
        kind, value = pickle.loads(worker.connection.recv_bytes())
    except (EOFError, OSError):
        worker.process.join()
        failures[rank] = f"died with exit code {worker.process.exitcode}; its last output:\n{worker.log_tail()}"
        return
    if kind == "result":
        results[rank] = value
    else:
        failures[rank] = value


def _report(workers: list[_Worker], failures: dict[int, str], late: list[int], timeout_s: float) -> str:
    parts = [f"rank {rank} {text}" for rank, text in sorted(failures.items())]
    for rank in late if not failures else ():
        worker = workers[rank]
        os.kill(worker.process.pid or 0, signal.SIGUSR1)
        time.sleep(0.5)  # faulthandler writes the stack into the log
        parts.append(f"rank {rank} did not end within {timeout_s} s; it stood at:\n{worker.log_tail()}")
    return "\n\n".join(parts)


def _serve(connection: Connection, log: Path) -> None:
    """A worker's life: one task after the other until the pool hangs up."""
    write_to(log)
    faulthandler.register(signal.SIGUSR1)
    from megatron_trainer import backend as backends

    backend = backends.select()
    backend.install()
    freeze = _keep_frozen()
    os.fsync = lambda _: None  # type: ignore[assignment]  # no test cuts the power; twenty times a run, 4 ms each
    while True:
        try:
            task = pickle.loads(connection.recv_bytes())
        except EOFError:
            break
        if task is None:
            break
        connection.send_bytes(pickle.dumps(answer(backend, *task)))
        freeze()  # alive after a run are modules
    os._exit(0)  # gloo's threads may hold up a normal exit after a failure


def write_to(log: Path) -> None:
    """Sends what this process prints to a file, and gives it nothing to read."""
    with log.open("wb") as output, open(os.devnull, "rb") as nothing:
        for number, file in ((0, nothing), (1, output), (2, output)):
            os.dup2(file.fileno(), number)


def _keep_frozen() -> Callable[[], None]:
    """gc.freeze, which is from now on this worker's alone: a run neither freezes its own objects nor thaws the modules.

    Half a million objects of modules are then out of every collection, which took a third of a second each.
    """
    freeze = gc.freeze
    freeze()
    gc.enable()
    gc.freeze = gc.unfreeze = lambda: None
    return freeze


def answer(
    backend: Any,
    function: Callable[..., Any],
    args: Any,
    kwargs: Any,
    rank: int,
    size: int,
    store: str,
    timeout_s: float,
) -> tuple[str, Any]:
    """("result", what the function returned on this rank), or ("failure", its traceback); no model stays behind."""
    import torch.distributed as dist

    from megatron_trainer import parallel

    try:
        parallel.join(
            backend,
            rank=rank,
            world_size=size,
            master_address="",
            master_port=0,
            timeout_s=timeout_s,
            store=dist.FileStore(store, size),
        )
        return "result", function(*args, **kwargs)
    except BaseException:  # noqa: BLE001 - the test that asked gets whatever happened
        return "failure", f"raised:\n{traceback.format_exc()}"
    finally:
        with contextlib.suppress(Exception):
            parallel.leave()
        _free_models()


def _free_models() -> None:
    """Lets go of the models of this run, and with them of its groups, each of which keeps threads that poll.

    megatron-core's data-parallel wrapper hangs itself onto the autograd nodes of its parameters: a circle through
    C++ that Python's collector does not see. Emptied, it holds nothing.
    """
    from megatron.core.distributed import DistributedDataParallel

    for wrapper in [found for found in gc.get_objects() if issubclass(type(found), DistributedDataParallel)]:
        vars(wrapper).clear()
    gc.collect()
