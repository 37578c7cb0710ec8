"""Micro-batches with images: pixels in the order of the row, positions of each sample from 0."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from megatron_trainer.data.collate import RowShape, collate
from megatron_trainer.data.values import Medium, Pair, Pixels, Sample
from megatron_trainer.data.vision.form import PatchForm
from megatron_trainer.data.vision.pixels import ImageReader
from megatron_trainer.failure import TrainingError
from megatron_trainer.train import read_data
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.families import read


def pixels(first, *grids):
    count = sum(int(np.prod(grid)) for grid in grids)
    values = np.arange(first, first + count, dtype=np.float32)[:, None].repeat(2, axis=1)
    return Pixels(values_PD=values, grid_N3=np.array(grids, np.int64))


def sample(ids, images=None, videos=None, positions=None):
    ids = np.array(ids, np.int32)
    places = None if positions is None else np.array(positions, np.int64)
    return Sample(input_ids=ids, labels=ids, images=images, videos=videos, position_ids_3T=places)


ONE = sample([1, 9, 2], pixels(0, (1, 2, 2)), positions=[[0, 1, 2], [0, 1, 2], [0, 5, 6]])
TEXT = sample([3, 4])
TWO = sample([9, 9], pixels(4, (1, 2, 2), (1, 2, 4)), pixels(50, (2, 2, 2)), positions=[[0, 0], [0, 1], [7, 8]])


def test_a_row_holds_the_pixels_of_its_samples_in_order():
    batch = collate([[ONE, TEXT], [TWO]], RowShape(pad_id=0))
    assert batch.pixel_values[:, 0].tolist() == list(range(16))
    assert batch.pixel_values.dtype == torch.float32
    assert batch.grid_thw.tolist() == [[1, 2, 2], [1, 2, 2], [1, 2, 4]]
    assert batch.video_grid_thw.tolist() == [[2, 2, 2]]
    assert batch.pixel_values_videos[:, 0].tolist() == list(range(50, 58))


def test_positions_restart_in_each_sample_and_text_counts_its_tokens():
    batch = collate([ONE, TEXT, TWO], RowShape(pad_id=0, row_multiple=8))
    assert batch.mrope_position_ids_3BT.shape == (3, 1, 8)
    assert batch.mrope_position_ids_3BT[:, 0].tolist() == [
        [0, 1, 2, 0, 1, 0, 0, 0],
        [0, 1, 2, 0, 1, 0, 1, 0],
        [0, 5, 6, 0, 1, 7, 8, 0],
    ]
    assert batch.position_ids_BT.tolist() == [[0, 1, 2, 0, 1, 0, 1, 0]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_keep_positions_beside_their_tokens(side):
    batch = collate([ONE, TEXT], RowShape(pad_id=0, padding_free=False, padding_side=side))
    is_text = batch.sequence_BT[1] == 1
    assert batch.mrope_position_ids_3BT[:, 1, is_text].tolist() == [[0, 1]] * 3
    assert batch.mrope_position_ids_3BT[2, 0].tolist() == [0, 5, 6]


def test_padding_inside_a_sample_continues_after_its_last_position():
    batch = collate([ONE], RowShape(pad_id=0, sample_multiple=4))
    assert batch.mrope_position_ids_3BT[:, 0, 3].tolist() == [7, 7, 7]


def test_pairs_hold_the_pixels_of_all_chosen_sequences_then_of_all_rejected():
    pairs = [Pair(chosen=ONE, rejected=sample([9], pixels(20, (1, 2, 2)))), Pair(chosen=TEXT, rejected=TWO)]
    batch = collate(pairs, RowShape(pad_id=0))
    assert batch.pixel_values[:, 0].tolist() == [*range(4), *range(20, 24), *range(4, 16)]


def test_text_alone_has_neither_pixels_nor_positions_of_three_kinds():
    batch = collate([TEXT], RowShape(pad_id=0))
    assert (batch.pixel_values, batch.grid_thw, batch.mrope_position_ids_3BT) == (None, None, None)


@pytest.mark.parametrize("is_first", [True, False])
def test_only_the_first_pipeline_stage_reads_pixels(is_first, monkeypatch):
    monkeypatch.setattr(read_data.parallel_state, "is_pipeline_first_stage", lambda **_: is_first)
    vision = read({"model_type": "qwen2_5_vl"}).vision
    spec, tokenizer = SimpleNamespace(model=SimpleNamespace(vision=vision)), SimpleNamespace(pad_token_id=0)
    gone = ImageReader(PatchForm(processor=SimpleNamespace(patch_size=14, resample=3)))
    shape = read_data._shape(TrainArgs(max_length=8), "sft", spec, tokenizer, SimpleNamespace(reader=gone))
    ids = np.array([1, vision.image_token, 2], np.int32)
    seen = Sample(input_ids=ids, labels=ids, media=(Medium(sources=("/gone.png",), size=(28, 28), grid=(1, 2, 2)),))
    if is_first:
        with pytest.raises(TrainingError, match="/gone.png"):
            collate([seen], shape)
        return
    batch = collate([seen], shape)
    assert batch.pixel_values is None
    assert batch.mrope_position_ids_3BT[:, 0].tolist() == [[0, 1, 2]] * 3
