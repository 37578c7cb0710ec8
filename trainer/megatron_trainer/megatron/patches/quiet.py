"""Silences messages of megatron-core that a user cannot act on; each is listed with the reason.

Only messages with these exact prefixes are dropped: any other warning of the same logger is kept.
"""

from __future__ import annotations

import logging
import warnings

_LOG_LINES = {
    # We build the model in one place (models/build.py) and move to the successor there when it has what we
    # need.
    "megatron.core.models.gpt.gpt_model": ("GPTModel IS DEPRECATED",),
    # It is logged for synchronous saves too, which have no alternative.
    "megatron.core.dist_checkpointing.strategies.torch": ("MCore's async save is deprecated",),
    # On a CPU the "GPU" generator is torch's own, so its state changes: that is its purpose.
    "megatron.core.tensor_parallel.random": ("CPU RNG state changed within GPU RNG context",),
}

_WARNINGS = (
    "Apex is not installed",  # torch's own norm is used instead
    "Transformer Engine and Apex are not installed",  # torch's own optimizer is used instead
)


class _Drop(logging.Filter):
    """Drops records with one of the given prefixes."""

    def __init__(self, beginnings: tuple[str, ...]) -> None:
        super().__init__()
        self._beginnings = beginnings

    def filter(self, record: logging.LogRecord) -> bool:
        """False for a message to drop."""
        return not record.getMessage().startswith(self._beginnings)


def install() -> None:
    """Adds the filters."""
    for name, beginnings in _LOG_LINES.items():
        logging.getLogger(name).addFilter(_Drop(beginnings))
    for beginning in _WARNINGS:
        warnings.filterwarnings("ignore", message=beginning)
