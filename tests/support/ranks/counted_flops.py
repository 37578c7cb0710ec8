"""What a run counts as its work: pairs of tokens and FLOPs of each step, on each gloo rank."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch


def of_steps(mapping: dict[str, object]) -> list[tuple[int, int, int, int, float]]:
    """(tokens, those with a loss, pairs, pairs within the window, FLOPs) of each step."""
    from megatron_trainer.train import loop
    from tests.support.ranks.tiny_run import train_rank

    counted, found = loop._flops, []

    def noted(run: Any, result: Any) -> float:
        flops = counted(run, result)
        found.append((result.num_tokens, result.num_targets, result.num_pairs, result.num_near_pairs, flops))
        return flops

    with patch.object(loop, "_flops", noted):
        run = train_rank(mapping, "sft", None, {})
    assert run.exit_code == 0, run.message
    return found
