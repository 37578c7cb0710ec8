"""Python's garbage collection: it skips the long-lived objects of a run, and with manual_gc all ranks collect at the
same steps, so that no rank waits for another.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator

from megatron_trainjob.args.tree import TrainArgs


@contextlib.contextmanager
def controlled(args: TrainArgs) -> Iterator[None]:
    """Collects once and freezes all existing objects, so that later collections take no noticeable time.

    With manual_gc, automatic collection is off inside the context.
    """
    gc.collect()
    gc.freeze()
    if args.manual_gc:
        gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.enable()


def collect_when_due(args: TrainArgs, iteration: int) -> dict[str, float]:
    """Collects after every manual_gc_interval-th step; returns the seconds taken by timer name, {} when not due."""
    if not args.manual_gc or args.manual_gc_interval == 0 or iteration % args.manual_gc_interval != 0:
        return {}
    started = time.monotonic()
    gc.collect()
    return {"manual-gc": time.monotonic() - started}


def collect_around_evaluation(args: TrainArgs) -> None:
    """Every rank pauses for an evaluation, so a manual collection costs least there."""
    if args.manual_gc:
        gc.collect()
