"""Logits of tokens without a loss are not computed, and a step is the same as with them, in every layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_trainer.models.loss_tokens import LossTokens, loss_tokens
from tests.support.matrix import mostly_slow
from tests.support.models import layouts, prediction_model, tiny_model
from tests.support.ranks import skipped_losses
from tests.support.ranks.pool import gloo_ranks
from tests.support.ranks.skipped_losses import ROW, Compared

TOLERANCE = 1e-5
"""Relative, of float32 sums over fewer tokens in another order; deeper layers divide by norms."""
LAYOUTS = ("tp1", "packed", "tp2", "tp2 sp packed", "pp2 packed", "pp2 vpp2 packed", "cp2", "cp2 packed")


def compare(directory: Path, text: str, **settings: Any) -> list[Compared]:
    layout = layouts.read(text)
    arguments = {"lora_dropout": 0.0, **layout["arguments"], **settings}
    ranks = gloo_ranks(layouts.num_ranks(layout["arguments"])).run(
        skipped_losses.compare, directory, arguments, packed=layout["packed"], virtual=layout["virtual"]
    )
    for found in ranks:
        assert max(found.errors.values()) < TOLERANCE, found.errors
        assert found.losses[0] == pytest.approx(found.losses[1], rel=TOLERANCE)
    return ranks


@pytest.mark.dist
@pytest.mark.parametrize("tuner", ["full", "lora"])
@pytest.mark.parametrize("text", mostly_slow(LAYOUTS, ("packed", "tp2 sp packed", "cp2")))
def test_a_step_is_the_same_with_fewer_rows_of_logits(text: str, tuner: str, model_root: Path):
    model = tiny_model.make("llama", model_root, num_hidden_layers=4)
    seen = [found.rows for found in compare(model, text, train_type=tuner) if found.rows[0]]
    assert seen
    for skipping, whole in seen:
        assert len(skipping) == len(whole) == 4  # of every micro-batch, also of that without a loss
        assert all(few <= many for few, many in zip(skipping, whole, strict=True))
        assert sum(skipping) < 0.7 * sum(whole)


@pytest.mark.dist
def test_the_output_layer_sees_the_tokens_with_a_loss(model_root: Path):
    """Of 20 trained tokens 6 have weight 0, a row without a loss has one token all the same, and of text that is
    trained but for its last token all take part.
    """
    (found,) = compare(tiny_model.make("llama", model_root), "packed")
    weights = [batch.loss_weight_BT for batch in skipped_losses.micro_batches(packed=True, multiple=1)]
    numbers = [int((each_BT != 0).sum()) for each_BT in weights]
    assert numbers == [44, 0, ROW - 1, 44]
    assert found.rows == ((44, 1, ROW, 44), (ROW,) * 4)
    assert found.num_targets == sum(numbers)


@pytest.mark.dist
@pytest.mark.parametrize("text", mostly_slow(["packed", "tp2 sp packed", "cp2 packed", "pp2 packed"], ("cp2 packed",)))
def test_predictions_of_later_tokens_skip_theirs(text: str, model_root: Path):
    model = prediction_model.make("glm4_moe", model_root)
    for found in compare(model, text, mtp_num_layers=2):
        skipping, whole = found.rows
        assert len(skipping) == len(whole) in (0, 3 * 4)
        assert not whole or sum(skipping) < 0.7 * sum(whole)


def tokens(has_loss_BT: list[list[int]], *, num_parts: int = 1, own: int = 0) -> LossTokens:
    """Labels count the places of the flattened sequence; weights are 2 where there is a loss."""
    here_BT = np.array(has_loss_BT, dtype=bool)
    labels_BT = torch.arange(here_BT.size).view(here_BT.T.shape).t()
    return loss_tokens(labels_BT, 2.0 * torch.from_numpy(here_BT), here_BT, num_parts=num_parts, own=own)


def test_tokens_are_in_the_order_of_the_flattened_sequence():
    """[T, B]: 0 1, 2 3, 4 5."""
    found = tokens([[0, 1, 0], [1, 0, 1]])
    assert found.labels_PM.tolist() == [[1, 2, 5]]
    assert found.weights_PM.tolist() == [[2, 2, 2]]
    assert found.places(slice(1, 3)).tolist() == [2, 5]
    assert found.of(torch.arange(6)).tolist() == [1, 2, 5]
    assert found.spread(torch.tensor([[7, 8, 9]])).tolist() == [0, 7, 8, 0, 0, 9]


def test_a_part_with_fewer_tokens_adds_some_without_a_loss():
    found = tokens([[0, 0, 1, 0, 1, 1, 0, 1]], num_parts=2, own=1)
    assert found.labels_PM.tolist() == [[2, 0, 1], [4, 5, 7]]
    assert found.weights_PM.tolist() == [[2, 0, 0], [2, 2, 2]]
    assert found.places(slice(0, 2)).tolist() == [0, 1]
    chunks = [(labels.tolist(), weights.tolist()) for _, labels, weights in found.chunks(2)]
    assert chunks == [([2, 0, 4, 5], [2, 0, 2, 2]), ([1, 7], [0, 2])]
    assert found.spread(torch.tensor([[1, 2, 3], [4, 5, 6]])).tolist() == [2, 3, 1, 0, 4, 5, 0, 6]


def test_without_any_loss_one_token_takes_part():
    found = tokens([[0, 0, 0, 0]], num_parts=2)
    assert (found.labels_PM.tolist(), found.weights_PM.tolist()) == ([[0], [2]], [[0], [0]])


@pytest.mark.parametrize(("length", "is_whole"), [(64, False), (65, True)])
def test_all_take_part_where_nearly_all_have_a_loss(length: int, is_whole: bool):
    found = tokens([[1] * (length - 1) + [0]])
    assert (found.places_PM is None) == is_whole
    assert found.spread(found.weights_PM).tolist() == [2] * (length - 1) + [0]
