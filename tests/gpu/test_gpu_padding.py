"""Padded rows under TransformerEngine: padding on either side is hidden, and a sliding window holds.

Losses of samples in padded rows beside those of the same samples alone. float32 takes TransformerEngine's plain
kernels, bfloat16 its fused ones, whose 8 bits move a loss of about 6 by some hundredths.
"""

from __future__ import annotations

import json

import pytest

from tests.support.models import tiny_model
from tests.support.ranks import sample_losses

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def channels(data, tmp_path_factory):
    """The conversations, each with its number as its channel."""
    path = tmp_path_factory.mktemp("padding") / "train.jsonl"
    rows = [json.loads(line) | {"channel": str(number)} for number, line in enumerate(data.read_text().splitlines())]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.05)])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["llama", "mistral_window", "phi3"])
def test_a_sample_in_a_padded_row_has_the_loss_that_it_has_alone(name, side, dtype, tolerance, model_root, channels):
    model = tiny_model.make(name, model_root, dtype=dtype)
    alone = sample_losses.losses(model, channels, {}, way="alone")
    assert sample_losses.losses(model, channels, {}, way=side) == pytest.approx(alone, abs=tolerance)
