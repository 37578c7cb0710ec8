"""The quickstart's model, real weights and real text, against transformers.

Bound 1e-3 where the tiny models have 1e-4: thirty layers, and logits of size 10 to 30.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.ranks import real_model
from tests.support.ranks.pool import gloo_ranks

BOUND = 1e-3
NUM_TOKENS = 200


def model_directory() -> Path:
    """The quickstart's model; skips without it."""
    found = real_model.directory()
    if found is None:
        pytest.skip("run examples/quickstart/make_model.py to get the model (93 MB)")
    return found


@pytest.fixture(scope="module")
def reference() -> tuple[Path, list[int], torch.Tensor]:
    """(directory, tokens of this repository's own README, transformers' logits for them)."""
    directory = model_directory()
    text = (real_model.QUICKSTART / "README.md").read_text()
    tokens = AutoTokenizer.from_pretrained(directory)(text)["input_ids"][:NUM_TOKENS]
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        return directory, tokens, model(torch.tensor([tokens])).logits[0]


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "size"),
    [({}, 1), ({"pipeline_model_parallel_size": 2}, 2), ({"tensor_model_parallel_size": 3}, 3)],
    ids=["tp1", "pp2", "tp3"],
)
def test_real_weights_give_transformers_logits(
    settings: dict[str, Any], size: int, reference: tuple[Path, list[int], torch.Tensor]
):
    """Nine heads over three key-value heads; the vocabulary does not divide by three and is padded."""
    directory, tokens, expected = reference
    assert len(tokens) == NUM_TOKENS
    (found,) = [one for one in gloo_ranks(size).run(real_model.logits, directory, tokens, settings) if one is not None]
    assert float((found - expected).abs().max()) <= BOUND
    assert torch.equal(found.argmax(-1), expected.argmax(-1))
