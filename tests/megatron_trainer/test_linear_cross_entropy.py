"""Cross entropy from hidden states, chunk by chunk, equals torch's of the whole logits, gradients too."""

import pytest

from tests.support.ranks import linear_loss_ranks
from tests.support.ranks.pool import gloo_ranks

TOLERANCE = 1e-5
"""Float32 sums over 20 columns and 24 tokens, in another order."""


@pytest.mark.parametrize("objective", ["plain", "dft"])
@pytest.mark.parametrize("at_once", [1, 7, 1000], ids=["one-token", "ragged-chunks", "one-chunk"])
@pytest.mark.parametrize("width", [8, 24], ids=["weight-chunk-by-chunk", "weight-at-the-end"])
def test_one_rank_computes_losses_and_gradients_as_torch_does(at_once, objective, width):
    """24 tokens: the gradient of all logits takes less than the weight's sum where that has 24 columns."""
    [found] = gloo_ranks(1).run(linear_loss_ranks.differences, at_once=at_once, objective=objective, width=width)
    assert max(found.values()) < TOLERANCE, found


@pytest.mark.parametrize("width", [8, 24], ids=["weight-chunk-by-chunk", "weight-at-the-end"])
def test_hidden_states_that_lie_row_by_row_get_their_gradients(width):
    """As those of padded rows with images did."""
    [found] = gloo_ranks(1).run(linear_loss_ranks.differences, at_once=7, width=width, lies_row_by_row=True)
    assert max(found.values()) < TOLERANCE, found


def test_in_float16_the_sum_over_all_tokens_stays_in_range():
    [error] = gloo_ranks(1).run(linear_loss_ranks.error_in_float16, at_once=7)
    assert error < 2**-9


@pytest.mark.dist
@pytest.mark.parametrize("sequence_parallel", [False, True], ids=["whole-sequence", "sequence-parallel"])
def test_a_split_vocabulary_gives_the_same_in_every_chunk(sequence_parallel):
    for at_once, width in ((5, 8), (5, 24), (1000, 8)):
        for found in gloo_ranks(2).run(
            linear_loss_ranks.differences, at_once=at_once, sequence_parallel=sequence_parallel, width=width
        ):
            assert max(found.values()) < TOLERANCE, found
