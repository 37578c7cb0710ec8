"""A run of a parameter's elements as boxes. What is saved and loaded with them: tests/megatron_trainer/checkpoint."""

import itertools

import numpy as np
import pytest

from megatron_trainer.megatron.patches.optimizer_shards import boxes

SHAPES = [(7,), (3, 4), (1, 5), (5, 1), (2, 3, 4), (2, 1, 3, 2)]


@pytest.mark.parametrize("shape", SHAPES)
def test_boxes_are_the_run_in_its_order(shape):
    whole = np.arange(np.prod(shape)).reshape(shape)
    for start, stop in itertools.combinations_with_replacement(range(whole.size + 1), 2):
        found = [
            whole[tuple(slice(at, at + extent) for at, extent in zip(box.offset, box.shape, strict=True))]
            for box in boxes(shape, start, stop)
        ]
        joined = np.concatenate([part.reshape(-1) for part in found]) if found else np.array([], int)
        assert joined.tolist() == list(range(start, stop))
        assert all(part.size for part in found)
        assert len(found) <= 2 * len(shape) - 1


def test_a_run_of_whole_rows_is_one_box():
    (box,) = boxes((6, 4, 2), 8, 32)
    assert (box.offset, box.shape) == ((1, 0, 0), (3, 4, 2))


def test_a_number_is_one_box_without_dimensions():
    (box,) = boxes((), 0, 1)
    assert (box.offset, box.shape) == ((), ())
    assert boxes((), 0, 0) == []
