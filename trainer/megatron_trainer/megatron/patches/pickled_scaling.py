"""Allows TransformerEngine to unpickle the FP8 scaling state that it stores in checkpoints."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

VARIABLE = "NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE"
"""TransformerEngine reads it whenever a module loads its state; without it, it rejects the scaling history."""


@contextlib.contextmanager
def allowed() -> Iterator[None]:
    """Context for a resume only: its files have been verified against their manifest.

    Whoever can forge a pickle there can forge `.metadata` too, the index that torch always unpickles.
    """
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "1"
    try:
        yield
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before
