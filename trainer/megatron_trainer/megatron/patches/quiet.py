"""Silences messages of megatron-core that say nothing a user could act on; each is named with the reason.

Only exact beginnings are dropped: any other warning of the same logger comes through.
"""

from __future__ import annotations

import logging
import warnings

_LOG_LINES = {
    # We build the model in one place (models/build.py) and move to the successor there when it has what we
    # need.
    "megatron.core.models.gpt.gpt_model": ("GPTModel IS DEPRECATED",),
    # It speaks of a synchronous save too, which has no other way.
    "megatron.core.dist_checkpointing.strategies.torch": ("MCore's async save is deprecated",),
    # On the processor the "GPU" generator is torch's own, so it moves: that is its purpose.
    "megatron.core.tensor_parallel.random": ("CPU RNG state changed within GPU RNG context",),
}

_WARNINGS = (
    "Apex is not installed",  # torch's own norm takes its place
    "Transformer Engine and Apex are not installed",  # torch's own optimizer takes its place
)


class _Drop(logging.Filter):
    """Drops records that begin in one of the given ways."""

    def __init__(self, beginnings: tuple[str, ...]) -> None:
        super().__init__()
        self._beginnings = beginnings

    def filter(self, record: logging.LogRecord) -> bool:
        """False for a message that is to be dropped."""
        return not record.getMessage().startswith(self._beginnings)


def install() -> None:
    """Adds the filters."""
    for name, beginnings in _LOG_LINES.items():
        logging.getLogger(name).addFilter(_Drop(beginnings))
    for beginning in _WARNINGS:
        warnings.filterwarnings("ignore", message=beginning)
