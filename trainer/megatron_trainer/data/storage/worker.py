"""Processes that encode chunks of records: a small pool, and the program of each worker.

Not `multiprocessing`: its fresh processes first import the parent's main module, which here means torch and
Megatron, and its forked ones break CUDA. These import the tokenizer and nothing else.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

from megatron_trainer.data.encoding.encode import Encoder
from megatron_trainer.data.row import Record
from megatron_trainer.data.storage.chunk import Chunk, to_chunk

CHUNKS_AHEAD = 3
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from megatron_trainer.data.storage import worker; worker.serve()"
)


def encode_in_processes(
    parts: Iterable[tuple[Record, ...]], encoder: Encoder, *, num_processes: int
) -> Iterator[Chunk]:
    """The chunk of each part, in order; at most a few parts per process are in memory.

    Raises RuntimeError when a process dies.
    """
    workers: list[_Worker] = []
    mine = threading.local()

    def encode(part: tuple[Record, ...]) -> Chunk:
        if not hasattr(mine, "worker"):
            mine.worker = _Worker(encoder)
            workers.append(mine.worker)
        worker: _Worker = mine.worker
        return worker.encode(part)

    with ThreadPoolExecutor(num_processes) as pool:
        waiting: deque[Future[Chunk]] = deque()
        try:
            for part in parts:
                waiting.append(pool.submit(encode, part))
                if len(waiting) >= num_processes * CHUNKS_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            for worker in workers:
                worker.stop()


class _Worker:
    """One process, seen from the parent: requests go to its standard input, answers come from its standard output."""

    def __init__(self, encoder: Encoder) -> None:
        command = [sys.executable, "-c", _START, json.dumps(sys.path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self._send(encoder)

    def encode(self, part: tuple[Record, ...]) -> Chunk:
        self._send(part)
        try:
            chunk = pickle.load(self._answers)
        except EOFError as err:
            raise self._death() from err
        assert isinstance(chunk, Chunk)
        return chunk

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._answers.close()

    def _send(self, value: object) -> None:
        try:
            pickle.dump(value, self._requests, protocol=pickle.HIGHEST_PROTOCOL)
            self._requests.flush()
        except BrokenPipeError as err:
            raise self._death() from err

    def _death(self) -> RuntimeError:
        return RuntimeError(f"a tokenizing process died with code {self._process.wait()}; use fewer dataset_num_proc")


def serve() -> None:
    """Answers requests until the parent is gone. Runs in the worker process."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output of libraries must not be mixed with the answers
    requests = sys.stdin.buffer
    encoder = _receive(requests)
    while part := _receive(requests):
        pickle.dump(to_chunk(encoder.encode(part)), answers, protocol=pickle.HIGHEST_PROTOCOL)  # type: ignore[attr-defined]
        answers.flush()


def _receive(requests: BinaryIO) -> object:
    try:
        value: object = pickle.load(requests)
    except EOFError:
        return None
    return value
