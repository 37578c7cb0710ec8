"""What test_preference_layouts.py runs on gloo ranks."""

from __future__ import annotations

from typing import Any

from tests.support.ranks.tiny_run import TinyRun, train_rank


def in_chunks(mapping: dict[str, Any]) -> tuple[TinyRun, int]:
    """A run whose logits come from at most eight tokens at a time, and the most tokens that there were."""
    from megatron_trainer.models import sequence_sums

    most = 0
    scores, limit = sequence_sums.SequenceSums._token_scores, sequence_sums.LOGITS_AT_ONCE

    def counted(self: Any, hidden: Any, labels: Any, *rest: Any) -> Any:
        nonlocal most
        most = max(most, len(labels))
        return scores(self, hidden, labels, *rest)

    sequence_sums.SequenceSums._token_scores = counted
    try:
        ranks = mapping.get("tensor_model_parallel_size", 1)
        sequence_sums.LOGITS_AT_ONCE = 8 * 320 // ranks
        return train_rank(mapping, "rlhf", None, {}), most
    finally:
        sequence_sums.SequenceSums._token_scores, sequence_sums.LOGITS_AT_ONCE = scores, limit
