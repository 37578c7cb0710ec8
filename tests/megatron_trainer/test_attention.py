"""Our core attention against one written out in full: packed, padded, windowed, over context-parallel ranks.

Tolerance 1e-5: float32 sums of a few dozen terms of size one in another order.
"""

from __future__ import annotations

import pytest
import torch

from tests.support.ranks import attention_cases
from tests.support.ranks.pool import gloo_ranks

pytestmark = pytest.mark.dist
TOLERANCE = 1e-5
PACKED = [8, 4, 12]


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("size", [1, 2])
def test_packed_sequences_do_not_see_each_other(size: int, window: int | None):
    for output, gradients in gloo_ranks(size).run(attention_cases.differences, PACKED, packed=True, window=window):
        assert output <= TOLERANCE
        assert gradients <= TOLERANCE


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("size", [1, 2])
def test_a_batch_of_whole_rows_is_causal(size: int, window: int | None):
    for output, gradients in gloo_ranks(size).run(attention_cases.differences, [16], packed=False, window=window):
        assert output <= TOLERANCE
        assert gradients <= TOLERANCE


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_is_hidden_and_leaves_gradients_finite(side: str, window: int | None):
    """A padded row may see nothing at all; a softmax over nothing would be nan and reach every weight."""
    ((difference, is_finite),) = gloo_ranks(1).run(attention_cases.with_padding, side, window)
    assert difference <= TOLERANCE
    assert is_finite


def test_dropout_differs_between_tensor_parallel_ranks_and_leaves_the_common_state_alone():
    """Each rank holds other heads; what all ranks draw in common has to stay in step."""
    (first, state_of_first), (second, state_of_second) = gloo_ranks(2).run(attention_cases.dropped, 11)
    assert not torch.equal(first, second)
    assert torch.equal(state_of_first, state_of_second)
    ((again, _), _) = gloo_ranks(2).run(attention_cases.dropped, 11)
    assert torch.equal(first, again)
