"""Prompts with the answers of other samples."""

import numpy as np

from megatron_trainer.data.collate import RowShape, collate
from megatron_trainer.data.mismatch import mismatched
from megatron_trainer.data.values import IGNORED, Sample


def sample(prompt: list[int], answer: list[int]) -> Sample:
    ids = np.array([*prompt, *answer], np.int32)
    labels = np.array([IGNORED] * len(prompt) + answer, np.int32)
    return Sample(input_ids=ids, labels=labels, target=(1.0,))


SAMPLES = [sample([1, 2], [3]), sample([4], [5, 6]), sample([7, 8, 9], [10])]


def test_every_prompt_gets_the_answer_of_the_sample_before():
    made = mismatched(SAMPLES, max_length=100)
    assert [one.input_ids.tolist() for one in made] == [[1, 2, 10], [4, 3], [7, 8, 9, 5, 6]]
    assert [one.labels.tolist() for one in made] == [
        [IGNORED, IGNORED, 10],
        [IGNORED, 3],
        [IGNORED, IGNORED, IGNORED, 5, 6],
    ]


def test_mismatched_samples_are_cut_to_the_longest_length():
    assert [one.input_ids.tolist() for one in mismatched(SAMPLES, max_length=4)][2] == [7, 8, 9, 5]


def test_a_sample_alone_has_no_other_answer():
    assert mismatched(SAMPLES[:1], max_length=100) == []


def test_a_micro_batch_holds_its_mismatched_samples_and_targets():
    batch = collate(SAMPLES, RowShape(pad_id=0, mismatched_length=100))
    assert batch.target_SN.tolist() == [[1.0], [1.0], [1.0]]
    assert batch.mismatched.tokens_BT.tolist() == [[1, 2, 10, 4, 3, 7, 8, 9, 5, 6]]
    assert batch.mismatched.cu_seqlens.tolist() == [0, 3, 5, 10]
    alone = collate(SAMPLES[:1], RowShape(pad_id=0, mismatched_length=100))
    assert alone.mismatched.num_samples == 0
    assert collate(SAMPLES, RowShape(pad_id=0)).mismatched is None
