"""A collective that timed out: how it is recognized, and which ranks did not take part in it.

A rank whose collective fails notes so in the process group's store. Those that have not after a moment are the ones for
which the others waited: they are stuck elsewhere, or stopped.
"""

from __future__ import annotations

import re
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.distributed_c10d import Store

from megatron_trainer import stacks
from megatron_trainer.lost_peer import with_causes

TIMED_OUT = re.compile(
    r"timed out waiting \d+ ?ms|timed? ?out after \d+ ?(ms|milliseconds)|collective operation timeout|"
    r"wait timeout after \d+ ?ms",
    re.IGNORECASE,
)
"""What gloo and NCCL say, in the words of several releases of torch."""
KEY = "failed-in-a-collective"
GRACE_S = 4.0
"""Ranks enter a collective at different times and so give up at different times."""
STORE_TIMEOUT_S = 10.0
SHOWN_RANKS = 8


def is_cause(error: BaseException) -> bool:
    """Whether the error, or one that led to it, is a collective that timed out."""
    return any(isinstance(each, RuntimeError) and TIMED_OUT.search(str(each)) for each in with_causes(error))


def note() -> None:
    """Tells the other ranks that this one failed in a collective, not outside; bounded, and never fails."""
    if dist.is_initialized():
        _bounded(lambda: _store().set(f"{KEY}/{dist.get_rank()}", "1"))


def explain(error: BaseException, *, iteration: int, limit_s: float) -> str:
    """The failure, and the ranks that were missing, if the store can still be asked; writes all stacks to the log."""
    stacks.write_now()
    note()
    time.sleep(GRACE_S)
    found: list[list[int]] = []
    _bounded(lambda: found.append([rank for rank in range(dist.get_world_size()) if not _has_noted(rank)]))
    missing = _named(found[0]) if found else "the store of rank 0 does not answer: that rank is stopped or gone"
    said = next(str(each) for each in with_causes(error) if TIMED_OUT.search(str(each)))
    return (
        f"a collective after step {iteration} timed out (ddp_timeout, {limit_s:g} s): {missing}. "
        f"Waited in {_place(error)}: {' '.join(said.split())}"
    )


def _has_noted(rank: int) -> bool:
    return bool(_store().check([f"{KEY}/{rank}"]))


def _named(missing: list[int]) -> str:
    if not missing:
        return "every rank waited, in collectives that do not match, or the network is broken"
    shown = ", ".join(map(str, missing[:SHOWN_RANKS])) + (", ..." if len(missing) > SHOWN_RANKS else "")
    return f"missing was rank {shown}" if len(missing) == 1 else f"missing were ranks {shown}"


def _place(error: BaseException) -> str:
    """The innermost function of the error's traceback outside of torch."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/torch/" not in frame.filename]
    if not frames:
        return "an unknown place"
    last = frames[-1]
    return f"{last.name} ({'/'.join(last.filename.split('/')[-2:])}:{last.lineno})"


def _store() -> Store:
    store = distributed_c10d._get_default_store()
    store.set_timeout(timedelta(seconds=STORE_TIMEOUT_S))
    return store


def _bounded(action: Callable[[], object]) -> None:
    """Runs an action that may block, where a stopped process does not answer, for a limited time; errors are lost."""

    def attempt() -> None:
        try:
            action()
        except Exception:  # noqa: BLE001 - what it would have added is not needed
            return

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(STORE_TIMEOUT_S)
