"""Micro-batches against hand-written rows."""

import numpy as np
import pytest
import torch
from transformers.masking_utils import sliding_window_causal_mask_function

from megatron_trainer.data.collate import RowShape, collate, row_multiple, sample_multiple
from megatron_trainer.data.values import Pair, Sample


def sample(ids, untrained=0, scale=None, channel=None):
    ids = np.array(ids, np.int32)
    labels = ids.copy()
    labels[:untrained] = -100
    return Sample(
        input_ids=ids,
        labels=labels,
        loss_scale=None if scale is None else np.array(scale, np.float32),
        channel=channel,
    )


A = sample([11, 12, 13], untrained=2, channel="a")
B = sample([21, 22])


def test_padding_free_row():
    batch = collate([A, B], RowShape(pad_id=0, row_multiple=4))
    assert batch.tokens_BT.tolist() == [[11, 12, 13, 21, 22, 0, 0, 0]]
    assert batch.labels_BT.tolist() == [[-100, 13, -100, 22, -100, -100, -100, -100]]
    assert batch.loss_weight_BT.tolist() == [[0, 1, 0, 1, 0, 0, 0, 0]]
    assert batch.position_ids_BT.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2]]
    assert batch.padding_BT.tolist() == [[False] * 5 + [True] * 3]
    assert batch.cu_seqlens.tolist() == [0, 3, 5, 8]
    assert batch.cu_seqlens.dtype == torch.int32
    assert (batch.max_seqlen, batch.num_samples, batch.num_tokens, batch.channels) == (3, 2, 5, ("a", None))
    assert batch.num_pairs == (1 + 2 + 3) + (1 + 2)
    assert (batch.has_loss_BT.tolist(), batch.num_targets) == ((batch.loss_weight_BT != 0).tolist(), 2)
    assert batch.attention_mask is None


@pytest.mark.parametrize("window", [1, 2, 3, 7])
@pytest.mark.parametrize("shape", [RowShape(pad_id=0, row_multiple=4), RowShape(pad_id=0, padding_free=False)])
def test_pairs_within_a_window_are_those_that_transformers_mask_leaves(shape, window):
    sees = sliding_window_causal_mask_function(window)
    places = [torch.arange(length) for length in (3, 2)]
    expected = sum(int(sees(0, 0, each[:, None], each[None]).sum()) for each in places)
    assert int(collate([A, B], shape).num_near_pairs(window)) == expected


def test_samples_of_one_length_are_rows_where_that_is_wanted_and_nothing_would_pad_them():
    rows = RowShape(pad_id=0, whole_rows=True)
    batch = collate([A, A], rows)
    assert batch.tokens_BT.tolist() == [[11, 12, 13]] * 2
    assert batch.position_ids_BT.tolist() == [[0, 1, 2]] * 2
    assert batch.sequence_BT.tolist() == [[0] * 3, [1] * 3]
    assert (batch.cu_seqlens, batch.attention_mask, batch.max_seqlen, batch.num_pairs) == (None, None, 3, 12)
    assert collate([A, B], rows).cu_seqlens.tolist() == [0, 3, 5]
    assert collate([A, A], RowShape(pad_id=0)).cu_seqlens.tolist() == [0, 3, 6]
    assert collate([A, A], RowShape(pad_id=0, whole_rows=True, row_multiple=2)).cu_seqlens.tolist() == [0, 3, 6]
    assert collate([A, A], RowShape(pad_id=0, whole_rows=True, row_length=6)).cu_seqlens.tolist() == [0, 3, 6]


def test_a_full_row_has_no_padding_segment():
    assert collate([A, B], RowShape(pad_id=0)).cu_seqlens.tolist() == [0, 3, 5]


def test_loss_scale_is_shifted_with_the_labels():
    batch = collate([sample([1, 2, 3], untrained=1, scale=[0, 2, 0.5])], RowShape(pad_id=0))
    assert batch.labels_BT.tolist() == [[2, 3, -100]]
    assert batch.loss_weight_BT.tolist() == [[2, 0.5, 0]]


def test_context_parallel_pads_every_sample_inside_its_segment():
    """cp 2: samples of 3 and 2 tokens become 4 and 4; tail padding is a segment of its own, a multiple of 4 too."""
    shape = RowShape(pad_id=9, sample_multiple=4, row_multiple=12)
    batch = collate([A, B], shape)
    assert batch.tokens_BT.tolist() == [[11, 12, 13, 9, 21, 22, 9, 9, 9, 9, 9, 9]]
    assert batch.cu_seqlens.tolist() == [0, 4, 8, 12]
    assert batch.position_ids_BT.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3]]
    assert batch.padding_BT.tolist() == [[False] * 3 + [True] + [False] * 2 + [True] * 6]
    assert batch.num_tokens == 5


def test_fixed_row_length():
    batch = collate([A], RowShape(pad_id=0, row_length=6))
    assert batch.tokens_BT.shape == (1, 6)
    assert batch.cu_seqlens.tolist() == [0, 3, 6]


def test_packed_rows_are_laid_end_to_end():
    batch = collate([[A, B], [B]], RowShape(pad_id=0))
    assert batch.tokens_BT.tolist() == [[11, 12, 13, 21, 22, 21, 22]]
    assert batch.cu_seqlens.tolist() == [0, 3, 5, 7]


def test_pairs_come_as_all_chosen_then_all_rejected():
    first, second = Pair(chosen=A, rejected=B), Pair(chosen=B, rejected=A)
    batch = collate([[first], [second]], RowShape(pad_id=0))
    assert batch.tokens_BT.tolist() == [[11, 12, 13, 21, 22, 21, 22, 11, 12, 13]]
    assert batch.num_samples == 4
    assert batch.channels == ("a", None, None, "a")


@pytest.mark.parametrize("side", ["right", "left"])
def test_padded_batch(side):
    batch = collate([A, B], RowShape(pad_id=0, padding_free=False, row_multiple=4, padding_side=side))
    right = side == "right"
    assert batch.tokens_BT.tolist() == (
        [[11, 12, 13, 0], [21, 22, 0, 0]] if right else [[0, 11, 12, 13], [0, 0, 21, 22]]
    )
    assert batch.labels_BT.tolist() == (
        [[-100, 13, -100, -100], [22, -100, -100, -100]] if right else [[-100, -100, 13, -100], [-100, -100, 22, -100]]
    )
    assert batch.position_ids_BT.tolist()[1] == ([0, 1, 0, 0] if right else [0, 0, 0, 1])
    assert batch.cu_seqlens is None
    forbidden = batch.attention_mask
    assert forbidden.shape == (2, 1, 4, 4)
    allowed_row_1 = (~forbidden[1, 0]).int().tolist()
    assert allowed_row_1 == (
        [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]]
        if right
        else [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    )


@pytest.mark.parametrize(
    ("tensor", "context", "sequence", "fp8", "expected"),
    [
        (1, 1, False, False, 1),
        (4, 1, False, False, 1),
        (4, 1, True, False, 4),
        (1, 2, False, False, 4),
        (2, 2, True, False, 4),
        (3, 2, True, False, 12),
        (1, 1, False, True, 16),
        (4, 1, True, True, 32),
        (2, 2, True, True, 32),
    ],
)
def test_row_multiple(tensor, context, sequence, fp8, expected):
    assert (
        row_multiple(tensor_parallel=tensor, context_parallel=context, sequence_parallel=sequence, fp8=fp8) == expected
    )
    assert expected % sample_multiple(context_parallel=context) == 0
