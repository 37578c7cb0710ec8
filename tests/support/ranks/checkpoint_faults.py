"""Whole tiny runs whose files are written slowly, or cannot be written: what each gloo rank runs.

The faults lie below our code: in Megatron's function that writes a file, and in the operating system's limits.
"""

from __future__ import annotations

import contextlib
import errno
import resource
import threading
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from tests.support.ranks.tiny_run import TinyRun, train_rank

WRITER = "megatron.core.dist_checkpointing.strategies.filesystem_async.FileSystemWriterAsync.write_preloaded_data"

DISK_FULL = OSError(errno.ENOSPC, "No space left on device")


def slow_rank(mapping: dict[str, object], until_step: int, env: dict[str, Any], stop_at: int | None = None) -> TinyRun:
    """A run in which no file is written before the step `until_step` has been made."""
    from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

    from megatron_trainer.termination import Termination

    write, may_write = FileSystemWriterAsync.write_preloaded_data, threading.Event()
    note = Termination.__setattr__

    def wait_and_write(*args: Any, **kwargs: Any) -> Any:
        assert may_write.wait(60), "training did not go on while a checkpoint was written"
        return write(*args, **kwargs)

    def open_gate(termination: Any, name: str, value: Any) -> None:
        note(termination, name, value)
        if name == "iteration" and value >= until_step:
            may_write.set()

    with patch(WRITER, wait_and_write), patch.object(Termination, "__setattr__", open_gate):
        return train_rank(mapping, "sft", stop_at, env)


def failing_rank(
    mapping: dict[str, object], bad_rank: int, env: dict[str, Any], fault: BaseException = DISK_FULL
) -> TinyRun:
    """A run in which one rank cannot write, for want of room on its disk if nothing else is said."""
    import torch.distributed as dist
    from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

    write = FileSystemWriterAsync.write_preloaded_data

    def write_or_fail(*args: Any, **kwargs: Any) -> Any:
        if dist.get_rank() == bad_rank:
            return kwargs["local_proc_idx"], fault
        return write(*args, **kwargs)

    with patch(WRITER, write_or_fail):
        return train_rank(mapping, "sft", None, env)


def failing_index_rank(mapping: dict[str, object], env: dict[str, Any]) -> TinyRun:
    """A run whose disk is full when the index of a checkpoint is written, which the first rank does alone."""
    full = OSError(errno.ENOSPC, "No space left on device")
    with patch(WRITER.replace("write_preloaded_data", "finish"), side_effect=full):
        return train_rank(mapping, "sft", None, env)


def limited_rank(mapping: dict[str, object], file_bytes: int, env: dict[str, Any]) -> TinyRun:
    """A run in a process that cannot make any file longer than this, as where a quota is used up."""
    with file_size_limit(file_bytes):
        return train_rank(mapping, "sft", None, env)


@contextlib.contextmanager
def file_size_limit(file_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
