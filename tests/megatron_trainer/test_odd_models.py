"""Odd model folders by fixed seeds: logits are transformers' own, or validation refuses the model as training does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.support.models.odd_models import BASES
from tests.support.ranks import odd_logits
from tests.support.ranks.pool import gloo_ranks

ONLY_READ_WHEN_LOADED = ("another than model.embed_tokens.weight",)
"""What `mtj validate` would have to read whole tensors for."""


@pytest.mark.dist
@pytest.mark.parametrize(
    "seeds",
    [
        pytest.param(range(2 * len(BASES)), id="two of each family"),
        pytest.param(range(1000, 1000 + 8 * len(BASES)), id="eight of each family", marks=pytest.mark.slow),
    ],
)
def test_odd_models_are_computed_as_transformers_does_or_refused(seeds: range, tmp_path: Path):
    (verdicts,) = gloo_ranks(1).run(odd_logits.judge_all, seeds, tmp_path)
    bad = [str(verdict) for verdict in verdicts if verdict.outcome in ("wrong", "crashed")]
    late = [str(verdict) for verdict in verdicts if verdict.outcome == "refused late"]
    assert bad == []
    assert [text for text in late if not any(known in text for known in ONLY_READ_WHEN_LOADED)] == []
    assert Counter(verdict.outcome for verdict in verdicts)["equal"] >= len(seeds) // 3
