"""Cross entropy from hidden states, chunk by chunk, equals torch's of the whole logits, gradients too."""

import pytest

from tests.support.ranks import linear_loss_ranks
from tests.support.ranks.pool import gloo_ranks

TOLERANCE = 1e-5
"""Float32 sums over 20 columns and 24 tokens, in another order."""


def check(found: dict[str, float], *, rows: int) -> None:
    assert found.pop("rows") == rows
    assert found["skipped"] == 0
    assert max(found.values()) < TOLERANCE, found


@pytest.mark.parametrize("objective", ["plain", "dft"])
@pytest.mark.parametrize("at_once", [1, 7, 1000], ids=["one-token", "ragged-chunks", "one-chunk"])
@pytest.mark.parametrize("width", [8, 24], ids=["weight-chunk-by-chunk", "weight-at-the-end"])
def test_one_rank_computes_losses_and_gradients_as_torch_does(at_once, objective, width):
    """24 tokens: the gradient of all logits takes less than the weight's sum where that has 24 columns."""
    [found] = gloo_ranks(1).run(linear_loss_ranks.differences, at_once=at_once, objective=objective, width=width)
    check(found, rows=24)


@pytest.mark.parametrize("width", [8, 24], ids=["weight-chunk-by-chunk", "weight-at-the-end"])
def test_hidden_states_that_lie_row_by_row_get_their_gradients(width):
    """As those of padded rows with images did."""
    [found] = gloo_ranks(1).run(linear_loss_ranks.differences, at_once=7, width=width, lies_row_by_row=True)
    check(found, rows=24)


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
            check(found, rows=24 // (2 if sequence_parallel else 1))


FEWER_ROWS = [(0, 18), (8, 6), (12, 1)]
"""(first of 12 tokens that may carry a loss, rows of logits): two rows, of which every fifth token carries none."""


@pytest.mark.parametrize("objective", ["plain", "dft"])
@pytest.mark.parametrize(("first_loss", "rows"), FEWER_ROWS)
@pytest.mark.parametrize("at_once", [1, 7, 1000], ids=["one-token", "ragged-chunks", "one-chunk"])
@pytest.mark.parametrize("width", [8, 24], ids=["weight-chunk-by-chunk", "weight-at-the-end"])
def test_tokens_without_a_loss_have_no_logits(at_once, width, first_loss, rows, objective):
    given = {"at_once": at_once, "width": width, "first_loss": first_loss, "objective": objective}
    [found] = gloo_ranks(1).run(linear_loss_ranks.differences, **given)
    check(found, rows=rows)


def test_nor_do_they_where_rows_lie_one_by_one_or_the_weight_is_frozen():
    for given in ({"lies_row_by_row": True}, {"is_frozen": True}):
        [found] = gloo_ranks(1).run(linear_loss_ranks.differences, at_once=7, first_loss=0, **given)
        check(found, rows=18)


@pytest.mark.dist
@pytest.mark.parametrize(
    ("sequence_parallel", "first_loss", "rows"),
    [*((False, *each) for each in FEWER_ROWS), (True, 0, 10), (True, 8, 6), (True, 12, 1)],
)
def test_nor_do_they_with_a_split_vocabulary(sequence_parallel, first_loss, rows):
    """Of a split sequence each rank has as many rows as the one with most: of the first 8 tokens rank 0 has 6."""
    for at_once, width in ((2, 8), (5, 24), (1000, 8)):
        given = {"at_once": at_once, "width": width, "first_loss": first_loss}
        for found in gloo_ranks(2).run(linear_loss_ranks.differences, sequence_parallel=sequence_parallel, **given):
            check(found, rows=rows)
