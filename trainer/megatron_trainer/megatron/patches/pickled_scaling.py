"""TransformerEngine's leave to unpickle the scaling of FP8 products, which it stores pickled in checkpoints."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

VARIABLE = "NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE"
"""TransformerEngine reads it whenever a module takes its state, and refuses the scaling's history without it."""


@contextlib.contextmanager
def allowed() -> Iterator[None]:
    """For a resume, and for it alone: its files have been compared with their manifest.

    Whoever could forge a pickle there could forge `.metadata` as well, the index that torch unpickles in every case.
    """
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "1"
    try:
        yield
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before
