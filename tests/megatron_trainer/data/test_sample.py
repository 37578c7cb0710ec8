"""The order of items: by hand for small sets, by the reference's formula, and resumed at every point."""

from dataclasses import replace
from itertools import islice

import pytest
import torch

from megatron_trainer.data.ordering.sample import Sampler, Segment, WholePass, extended
from megatron_trainjob.args import derive
from megatron_trainjob.args.tree import TrainArgs


def sampler(**fields):
    defaults = {"num_items": 13, "micro_batch_size": 1, "data_parallel_rank": 0, "data_parallel_size": 2}
    return Sampler(**{**defaults, **fields})


def test_sequential_order_is_dealt_micro_batch_by_micro_batch():
    """7 items, 2 ranks, micro-batches of 1: item 6 fills no whole round."""
    ranks = [list(sampler(num_items=7, data_parallel_rank=rank, dataloader_type="single")) for rank in (0, 1)]
    assert ranks == [[[0], [2], [4]], [[1], [3], [5]]]


def test_sequential_order_with_larger_micro_batches():
    ranks = [
        list(sampler(num_items=9, micro_batch_size=2, data_parallel_rank=rank, dataloader_type="single"))
        for rank in (0, 1)
    ]
    assert ranks == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]


def test_cyclic_order_shuffles_each_ranks_block_with_the_epoch_as_seed():
    """torch.randperm(3) is 2 0 1 for seed 0 and 1 2 0 for seed 1."""
    assert torch.randperm(3, generator=torch.Generator().manual_seed(0)).tolist() == [2, 0, 1]
    assert torch.randperm(3, generator=torch.Generator().manual_seed(1)).tolist() == [1, 2, 0]
    first = list(islice(sampler(num_items=7), 6))
    second = list(islice(sampler(num_items=7, data_parallel_rank=1), 6))
    assert first == [[2], [0], [1], [1], [2], [0]]
    assert second == [[5], [3], [4], [4], [5], [3]]


def reference_order(num_items, micro, rank, ranks, consumed, count):
    """Micro-batches by the reference's formulas, written as they are stated: block, seed, offset."""
    step = micro * ranks
    active = num_items - num_items % step
    batches = []
    while len(batches) < count:
        epoch, offset = consumed // active, consumed % active
        block = num_items // step * micro
        order = torch.randperm(block, generator=torch.Generator().manual_seed(epoch))[offset // ranks :]
        indices = (order + rank * block).tolist()
        for first in range(0, len(indices), micro):
            batches.append(indices[first : first + micro])
            consumed += step
    return batches[:count]


@pytest.mark.parametrize(("micro", "ranks"), [(1, 1), (2, 1), (1, 3), (2, 2)])
def test_cyclic_order_equals_the_references_formula_from_every_offset(micro, ranks):
    for rank in range(ranks):
        for steps in range(20):
            resumed = sampler(
                micro_batch_size=micro,
                data_parallel_rank=rank,
                data_parallel_size=ranks,
                consumed_samples=steps * micro * ranks,
            )
            expected = reference_order(13, micro, rank, ranks, steps * micro * ranks, 15)
            assert list(islice(resumed, 15)) == expected


@pytest.mark.parametrize("options", [{}, {"data_sharding": False}], ids=["sharded", "unsharded"])
@pytest.mark.parametrize(("micro", "ranks"), [(1, 1), (1, 2), (2, 2), (3, 1)])
def test_resuming_at_any_offset_gives_the_rest_of_the_uninterrupted_order(options, micro, ranks):
    for rank in range(ranks):
        whole = sampler(micro_batch_size=micro, data_parallel_rank=rank, data_parallel_size=ranks, **options)
        order = list(islice(whole, 40))
        for steps in range(30):
            resumed = replace(whole, consumed_samples=steps * micro * ranks)
            assert list(islice(resumed, 10)) == order[steps : steps + 10]


@pytest.mark.parametrize("options", [{}, {"data_sharding": False}], ids=["sharded", "unsharded"])
def test_an_epoch_reads_no_item_twice_and_leaves_out_less_than_one_step(options):
    for num_items, micro, ranks in [(13, 2, 2), (40, 3, 4), (8, 1, 8)]:
        seen = [
            index
            for rank in range(ranks)
            for batch in sampler(
                num_items=num_items,
                micro_batch_size=micro,
                data_parallel_rank=rank,
                data_parallel_size=ranks,
                num_epochs=1,
                **options,
            )
            for index in batch
        ]
        assert len(seen) == len(set(seen)) == num_items // (micro * ranks) * micro * ranks


def test_unsharded_global_batches_do_not_depend_on_the_layout():
    """12 items in global batches of 4: 1 rank x 4, 2 ranks x 2 and 4 ranks x 1 read the same sets."""

    def global_batches(micro, ranks):
        readers = [
            sampler(
                num_items=12,
                micro_batch_size=micro,
                data_parallel_rank=rank,
                data_parallel_size=ranks,
                data_sharding=False,
                num_epochs=2,
            )
            for rank in range(ranks)
        ]
        return [sorted(i for batch in round_ for i in batch) for round_ in zip(*readers, strict=True)]

    assert global_batches(4, 1) == global_batches(2, 2) == global_batches(1, 4)


def read_items(layouts, num_items, options):
    """Items per segment when a run changes its layout: [(samples, micro, ranks)] -> list of item lists."""
    history, consumed, segments = (), 0, []
    for samples, micro, ranks in layouts:
        items = []
        for rank in range(ranks):
            reader = sampler(
                num_items=num_items,
                micro_batch_size=micro,
                data_parallel_rank=rank,
                data_parallel_size=ranks,
                consumed_samples=consumed,
                history=history,
                **options,
            )
            items += [index for batch in islice(reader, samples // (micro * ranks)) for index in batch]
        segments.append(items)
        segment = Segment(num_samples=samples, micro_batch_size=micro, data_parallel_size=ranks)
        history, consumed = extended(history, segment), consumed + samples
    return segments


@pytest.mark.parametrize("options", [{}, {"data_sharding": False}], ids=["sharded", "unsharded"])
def test_a_changed_layout_reads_what_is_left_of_the_epoch(options):
    """24 items: 8 read by 2 ranks, 8 by 4 ranks, 8 by 1 rank with micro-batches of 2: each item exactly once."""
    segments = read_items([(8, 1, 2), (8, 1, 4), (8, 2, 1)], 24, options)
    assert sorted(index for items in segments for index in items) == list(range(24))


def test_after_a_changed_layout_the_next_epoch_is_the_usual_one():
    later = sampler(
        num_items=24,
        data_parallel_size=4,
        consumed_samples=24,
        history=(Segment(num_samples=8, micro_batch_size=1, data_parallel_size=2),),
    )
    fresh = sampler(num_items=24, data_parallel_size=4, consumed_samples=24)
    assert list(islice(later, 12)) == list(islice(fresh, 12))


def test_a_history_of_the_same_layout_is_one_stretch():
    one = Segment(num_samples=8, micro_batch_size=1, data_parallel_size=2)
    other = Segment(num_samples=4, micro_batch_size=2, data_parallel_size=2)
    assert extended(extended((), one), one) == (replace(one, num_samples=16),)
    assert extended((one,), other) == (one, other)


def test_too_few_items_say_what_to_do():
    with pytest.raises(ValueError, match="3 items do not fill one micro-batch on each of 2 data-parallel ranks"):
        sampler(num_items=3, micro_batch_size=2)


@pytest.mark.parametrize("num_items", [7, 8, 33, 100])
@pytest.mark.parametrize(("micro", "ranks", "accumulation"), [(1, 1, 4), (2, 2, 2), (1, 3, 1)])
def test_whole_epochs_hold_as_many_global_batches_as_the_arguments_promise(num_items, micro, ranks, accumulation):
    epochs = 3
    if num_items < micro * ranks:
        pytest.skip("fewer items than a step")
    args = TrainArgs(
        micro_batch_size=micro, global_batch_size=micro * ranks * accumulation, max_epochs=epochs, train_iters=None
    )
    reader = sampler(num_items=num_items, micro_batch_size=micro, data_parallel_size=ranks, num_epochs=epochs)
    assert len(list(reader)) // accumulation == derive.train_iters(args, num_items, ranks)


@pytest.mark.parametrize("history", [(), (Segment(num_samples=12, micro_batch_size=2, data_parallel_size=3),)])
@pytest.mark.parametrize("consumed", [0, 12, 24, 36, 48, 60, 72])
def test_what_is_left_is_what_all_ranks_still_read(history, consumed):
    place = {"num_items": 33, "consumed_samples": consumed, "history": history if consumed else (), "num_epochs": 2}
    readers = [sampler(**place, data_parallel_rank=rank) for rank in range(2)]
    read = sum(len(items) for reader in readers for items in reader)
    assert [reader.num_left for reader in readers] == [read, read]
    assert replace(readers[0], num_epochs=None).num_left is None


@pytest.mark.parametrize(("num_items", "micro", "ranks"), [(7, 1, 2), (5, 2, 2), (9, 2, 3), (1, 1, 4), (12, 2, 3)])
def test_a_whole_pass_reads_every_item_once_in_as_many_micro_batches_on_each_rank(num_items, micro, ranks):
    place = {"num_items": num_items, "micro_batch_size": micro, "data_parallel_size": ranks}
    dealt = [list(WholePass(**place, data_parallel_rank=rank)) for rank in range(ranks)]
    assert sorted(item for batches in dealt for batch in batches for item in batch) == list(range(num_items))
    assert len({len(batches) for batches in dealt}) == 1
    assert max(len(batch) for batches in dealt for batch in batches) <= micro
    if micro == 1:
        assert [batch for step in zip(*dealt, strict=True) for batch in step if batch] == [
            [n] for n in range(num_items)
        ]


LENGTHS = torch.randint(1, 1000, (407,), generator=torch.Generator().manual_seed(1))


def grouped(**fields):
    return sampler(num_items=407, micro_batch_size=2, lengths=LENGTHS, **fields)


def test_grouped_by_length_ranks_read_samples_of_like_length_at_the_same_time():
    """407 items, 2 ranks, micro-batches of 2: 101 micro-steps, sorted within windows of 50."""
    ranks = [list(islice(grouped(data_parallel_rank=rank), 202)) for rank in (0, 1)]
    steps = [LENGTHS[torch.tensor(a + b)] for a, b in zip(*ranks, strict=True)]
    epochs = [
        sorted(item for rank in ranks for step in rank[start : start + 101] for item in step) for start in (0, 101)
    ]
    assert all(len(set(epoch)) == 404 for epoch in epochs), "each item once, but for the three that fill no micro-step"
    spread = torch.stack([step.max() - step.min() for step in steps]).float().mean()
    assert spread < 40, "of lengths up to 1,000; at random it would be some 600"
    assert steps[0].max() == torch.stack([step.max() for step in steps[:101]]).max(), "the longest comes first"
    means = torch.stack([step.float().mean() for step in steps[1:101]])
    assert abs(torch.corrcoef(torch.stack([means, torch.arange(100.0)]))[0, 1]) < 0.5, "long and short steps are mixed"
    assert ranks[0][:101] != ranks[0][101:], "another order in each epoch"


@pytest.mark.parametrize("consumed", [0, 4, 200, 404, 600])
def test_grouped_by_length_goes_on_where_it_stopped(consumed):
    whole = list(islice(grouped(data_parallel_rank=1), 202))
    assert list(islice(grouped(data_parallel_rank=1, consumed_samples=consumed), 30)) == whole[consumed // 4 :][:30]


def test_grouped_by_length_reads_the_rest_of_its_epoch_in_another_layout():
    first = [item for rank in (0, 1) for batch in islice(grouped(data_parallel_rank=rank), 25) for item in batch]
    history = (Segment(num_samples=100, micro_batch_size=2, data_parallel_size=2),)
    on = replace(grouped(), micro_batch_size=1, data_parallel_size=1, consumed_samples=100, history=history)
    assert sorted([*first, *(item for batch in islice(on, 307) for item in batch)]) == list(range(407))


@pytest.mark.parametrize(("consumed", "epochs"), [(0, 0), (11, 0), (12, 1), (13, 1), (24, 2), (36, 3)])
def test_completed_epochs_are_those_read_to_their_end(consumed, epochs):
    """13 items, 2 ranks: an epoch has 12."""
    assert sampler(consumed_samples=consumed).completed_epochs == epochs
