"""Python's garbage collection: it passes over what a run is built of, and under manual_gc all ranks collect at the same
steps, so that none waits for another.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator

from megatron_trainjob.args.tree import TrainArgs


@contextlib.contextmanager
def controlled(args: TrainArgs) -> Iterator[None]:
    """After one collection, all that is there now is left out of later ones, which then take no noticeable time.

    With manual_gc the automatic collection is off inside.
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
    """Collects after every manual_gc_interval-th step; the seconds it took, by timer name, {} when it was not due."""
    if not args.manual_gc or args.manual_gc_interval == 0 or iteration % args.manual_gc_interval != 0:
        return {}
    started = time.monotonic()
    gc.collect()
    return {"manual-gc": time.monotonic() - started}


def collect_around_evaluation(args: TrainArgs) -> None:
    """An evaluation is a pause for every rank, so a manual collection costs least there."""
    if args.manual_gc:
        gc.collect()
