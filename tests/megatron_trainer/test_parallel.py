"""Groups, coordinates, sums, and a context rank's part of a row."""

from __future__ import annotations

import pytest

from tests.support.ranks import parallel_cases
from tests.support.ranks.pool import RankError, gloo_ranks

pytestmark = pytest.mark.dist


def test_ranks_are_numbered_tensor_first_and_pipeline_last():
    places = gloo_ranks(4).run(parallel_cases.coordinates, tensor_model_parallel_size=2, pipeline_model_parallel_size=2)
    assert [(place["tensor"], place["pipeline"], place["data"]) for place in places] == [
        (0, 0, 0),
        (1, 0, 0),
        (0, 1, 0),
        (1, 1, 0),
    ]
    assert {place["world_size"] for place in places} == {4}


def test_context_ranks_come_before_data_ranks():
    places = gloo_ranks(4).run(parallel_cases.coordinates, context_parallel_size=2)
    assert [(place["context"], place["data"]) for place in places] == [(0, 0), (1, 0), (0, 1), (1, 1)]


def test_a_sum_runs_over_the_ranks_that_share_a_sequence():
    """Four ranks, two context x two data: context pairs are 0+1 and 2+3."""
    assert gloo_ranks(4).run(parallel_cases.sum_of_ranks, context_parallel_size=2) == [1.0, 1.0, 5.0, 5.0]


def test_packed_sequences_are_dealt_out_zigzag_each_by_itself():
    first, second = gloo_ranks(2).run(parallel_cases.local_part, list(range(12)), [8, 4])
    assert first[0] == [0, 1, 6, 7, 8, 11]
    assert second[0] == [2, 3, 4, 5, 9, 10]
    assert first[1] == [token + 100 for token in first[0]]
    assert first[2] == second[2] == [0, 8, 12]


def test_a_padded_row_is_dealt_out_as_a_whole_and_loses_its_mask():
    first, second = gloo_ranks(2).run(parallel_cases.local_part, list(range(8)), None, padded=2)
    assert (first[0], second[0]) == ([0, 1, 6, 7], [2, 3, 4, 5])
    assert not first[3]


def test_one_rank_keeps_the_row_as_it_is():
    ((tokens, _, _, has_mask),) = gloo_ranks(1).run(parallel_cases.local_part, [1, 2, 3], None)
    assert tokens == [1, 2, 3]
    assert has_mask


def test_a_sequence_that_does_not_divide_is_refused():
    (told, _) = gloo_ranks(2).run(parallel_cases.local_part, list(range(6)), [6])
    assert told == (
        "a sequence of 6 tokens is not divisible into 2 * context_parallel_size = 4 chunks; the collator has to pad it"
    )


def test_padding_on_the_left_is_refused_where_rows_are_split():
    (told, _) = gloo_ranks(2).run(parallel_cases.local_part, list(range(8)), None, padded=2, left=True)
    assert "padding on the right" in told


def test_a_failing_rank_is_reported_with_its_traceback_and_the_next_run_is_well():
    with pytest.raises(RankError, match="ValueError: a rank that raises"):
        gloo_ranks(2).run(parallel_cases.raise_error)
    assert len(gloo_ranks(2).run(parallel_cases.coordinates)) == 2
