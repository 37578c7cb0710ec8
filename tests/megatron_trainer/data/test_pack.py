"""Packed rows: nothing lost, nothing cut, nothing too long, and hardly any room left."""

import numpy as np
import pytest

from megatron_trainer.data.ordering.pack import best_fit, fill, pack


def rows_of(packing):
    return [packing.order[a:b].tolist() for a, b in zip(packing.starts[:-1], packing.starts[1:], strict=True)]


def test_by_hand():
    """Longest first: 6 opens a row, 5 opens one, 4 opens one, 3 fills 5 up, 2 fills 6 up."""
    assert rows_of(pack([5, 3, 6, 2, 4], 8)) == [[0, 1], [2, 3], [4]]


def test_best_fit_takes_the_fullest_row_that_has_room():
    """7 and 5 open rows with room 3 and 5; 3 goes where it fits exactly."""
    assert best_fit([7, 5, 3], 10) == [[0, 2], [1]]


def test_an_item_longer_than_a_row_has_a_row_of_its_own():
    assert rows_of(pack([20, 3, 8], 8)) == [[0], [1], [2]]


def test_no_items_no_rows():
    assert len(pack([], 8)) == 0


def mixture(kind, count, longest, generator):
    if kind == "log-normal":
        return np.clip(generator.lognormal(5.5, 1.0, count).astype(int), 1, longest)
    if kind == "two humps":
        short, long = generator.integers(20, 200, count), generator.integers(longest // 2, longest, count)
        return np.where(generator.random(count) < 0.8, short, long)
    return generator.integers(1, longest + 1, count)


@pytest.mark.parametrize("kind", ["log-normal", "two humps", "uniform"])
@pytest.mark.parametrize("row_length", [2048, 8192])
def test_every_item_is_in_one_row_and_the_rows_are_full(kind, row_length):
    lengths = mixture(kind, 20_000, 2048, np.random.default_rng(1))
    packing = pack(lengths, row_length)
    assert sorted(packing.order.tolist()) == list(range(len(lengths)))
    totals = np.add.reduceat(lengths[packing.order], packing.starts[:-1])
    assert totals.max() <= row_length
    # Two long items never share a row of 2048, so only what their number allows can be reached there.
    possible = (
        np.ceil(lengths.sum() / row_length)
        if row_length > 2048
        else max(np.ceil(lengths.sum() / row_length), (lengths > row_length / 2).sum())
    )
    assert possible / len(packing) >= 0.995
    if kind == "log-normal":
        assert fill(lengths, packing, row_length) >= 0.995


def test_the_same_items_are_packed_the_same():
    lengths = mixture("uniform", 3000, 500, np.random.default_rng(2))
    first, second = pack(lengths, 1024), pack(lengths.tolist(), 1024)
    assert first.order.tolist() == second.order.tolist()
    assert first.starts.tolist() == second.starts.tolist()


def test_rows_come_in_the_order_of_their_first_items():
    packing = pack(mixture("uniform", 3000, 500, np.random.default_rng(3)), 1024)
    firsts = packing.order[packing.starts[:-1]]
    assert (np.diff(firsts) > 0).all()
