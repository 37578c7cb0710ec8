"""A tiny run through the program's own entry whose device runs out of memory in a step: what a rank's process does."""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.support.ranks.tiny_run import TinyRun, main_rank


def full_device_rank(
    mapping: dict[str, object], fault: BaseException, step: int, available_bytes: int | None, record: Path
) -> TinyRun:
    """Raises the fault in the model's forward pass of this step; the termination record is left at `record`."""
    from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding

    from megatron_trainer.backend import CpuBackend
    from megatron_trainjob.environment import FAILURE_FILE

    forward, calls = LanguageModelEmbedding.forward, count(1)

    def forward_or_fail(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == step:
            raise fault
        return forward(*args, **kwargs)

    with (
        patch.object(LanguageModelEmbedding, "forward", forward_or_fail),
        patch.object(CpuBackend, "available_memory_bytes", lambda _: available_bytes),
        patch.dict(os.environ, {FAILURE_FILE: str(record)}),
    ):
        return main_rank(mapping, "sft")
