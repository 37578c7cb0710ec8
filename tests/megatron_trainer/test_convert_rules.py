"""The weight rules alone: every rank's shard of known tensors, and the way back. No Megatron, no processes."""

from __future__ import annotations

import pytest
import torch

from megatron_trainer.convert.rules import RULES, Share, Sizes

SIZES = Sizes(groups=2, queries_per_group=2, vocab_size=5, padded_vocab_size=6)
"""4 query heads over 2 key-value heads; 5 tokens padded to 6."""


def rows(*names: str) -> torch.Tensor:
    """One row a name, [len(names), 2]: the name's number, then ten times that."""
    numbers = torch.tensor([float(int(name)) for name in names])
    return torch.stack([numbers, 10 * numbers], dim=1)


def shares(rule: str, sources: list[torch.Tensor], size: int, dim: int | None = 0) -> list[torch.Tensor]:
    """Every rank's shard; put together and copied into a parameter they are the same."""
    blocks = [RULES[rule].blocks(sources, Share(rank=r, size=size, dim=dim), SIZES) for r in range(size)]
    for block in blocks:
        parameter = torch.full(block.shape, -1.0)
        block.copy_to(parameter)
        assert torch.equal(parameter, block.whole())
    return [block.whole() for block in blocks]


def back(rule: str, parts: list[torch.Tensor], dim: int | None = 0) -> tuple[torch.Tensor, ...]:
    return RULES[rule].unshard(parts, dim, SIZES)


def test_qkv_interleaves_heads_by_key_value_group():
    """Head size 1: queries 1 2 3 4, keys 5 6, values 7 8 -> [1 2 5 7 | 3 4 6 8]."""
    q, k, v = rows("1", "2", "3", "4"), rows("5", "6"), rows("7", "8")
    (whole,) = shares("qkv", [q, k, v], 1)
    assert whole[:, 0].tolist() == [1, 2, 5, 7, 3, 4, 6, 8]
    first, second = shares("qkv", [q, k, v], 2)
    assert first[:, 0].tolist() == [1, 2, 5, 7]
    assert second[:, 0].tolist() == [3, 4, 6, 8]
    assert all(map(torch.equal, back("qkv", [first, second]), (q, k, v)))


def test_qkv_cuts_inside_a_group_when_there_are_more_ranks_than_groups():
    q, k, v = rows("1", "2", "3", "4"), rows("5", "6"), rows("7", "8")
    parts = shares("qkv", [q, k, v], 4)
    assert [part[:, 0].tolist() for part in parts] == [[1, 2], [5, 7], [3, 4], [6, 8]]
    assert all(map(torch.equal, back("qkv", parts), (q, k, v)))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_query_key_and_value_in_one_tensor_are_cut_like_three(size: int):
    """Rows q1 q2 q3 q4 k5 k6 v7 v8 of one tensor; more ranks than groups too."""
    q, k, v = rows("1", "2", "3", "4"), rows("5", "6"), rows("7", "8")
    parts = shares("fused_qkv", [torch.cat([q, k, v])], size)
    assert all(map(torch.equal, parts, shares("qkv", [q, k, v], size)))
    assert torch.equal(back("fused_qkv", parts)[0], torch.cat([q, k, v]))


def test_qkv_biases_follow_their_weights():
    q, k, v = (torch.arange(n, dtype=torch.float32) + start for n, start in ((4, 0), (2, 10), (2, 20)))
    parts = shares("qkv", [q, k, v], 2)
    assert [part.tolist() for part in parts] == [[0, 1, 10, 20], [2, 3, 11, 21]]
    assert all(map(torch.equal, back("qkv", parts), (q, k, v)))


@pytest.mark.parametrize("rule", ["gated", "fused_gated"])
def test_gated_ranks_hold_their_part_of_gate_over_their_part_of_up(rule: str):
    """Gate rows 1 2, up rows 3 4, two ranks -> [1 3] and [2 4]; a plain cut of [1 2 3 4] would be wrong."""
    gate, up = rows("1", "2"), rows("3", "4")
    sources = [gate, up] if rule == "gated" else [torch.cat([gate, up])]
    parts = shares(rule, sources, 2)
    assert [part[:, 0].tolist() for part in parts] == [[1, 3], [2, 4]]
    assert all(map(torch.equal, back(rule, parts), sources))


@pytest.mark.parametrize(("dim", "first"), [(0, [[1, 10]]), (1, [[1], [2]]), (None, [[1, 10], [2, 20]])])
def test_plain_cuts_rows_or_columns_or_nothing(dim: int | None, first: list[list[float]]):
    weight = rows("1", "2")
    parts = shares("plain", [weight], 2, dim)
    assert parts[0].tolist() == first
    assert torch.equal(back("plain", parts, dim)[0], weight)


def test_vocabulary_is_padded_with_zero_rows_that_an_export_drops():
    embedding = rows("1", "2", "3", "4", "5")
    parts = shares("vocabulary", [embedding], 2)
    assert [part[:, 0].tolist() for part in parts] == [[1, 2, 3], [4, 5, 0]]
    assert torch.equal(back("vocabulary", parts)[0], embedding)


def test_new_tokens_start_as_the_mean_of_the_known_ones():
    """3 stored rows 1 2 6 for a vocabulary of 5: rows 4 and 5 are their mean 3, the sixth is padding."""
    parts = shares("vocabulary", [rows("1", "2", "6")], 2)
    assert [part[:, 0].tolist() for part in parts] == [[1, 2, 6], [3, 3, 0]]


def test_all_rows_padding_when_the_vocabulary_ends_before_the_last_rank():
    sizes = Sizes(groups=2, queries_per_group=2, vocab_size=2, padded_vocab_size=6)
    share = Share(rank=2, size=3, dim=0)
    assert RULES["vocabulary"].shard([rows("1", "2")], share, sizes).tolist() == [[0, 0], [0, 0]]


def test_rows_that_do_not_divide_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match="3 rows or columns are not divisible by 2 ranks"):
        shares("plain", [rows("1", "2", "3")], 2)


def test_a_share_reads_only_the_rows_it_needs():
    """A source that counts: the second of four ranks reads a quarter of a plain weight and of each gated half."""

    class Counting:
        shape = (8, 2)

        def __init__(self) -> None:
            self.read = 0

        def __getitem__(self, index: slice) -> torch.Tensor:
            part = torch.zeros(self.shape)[index]
            self.read += part.shape[0]
            return part

    for rule, num_sources in (("plain", 1), ("gated", 2), ("fused_gated", 1)):
        sources = [Counting() for _ in range(num_sources)]
        RULES[rule].shard(sources, Share(rank=1, size=4, dim=0), SIZES)
        assert [source.read for source in sources] == [2] * num_sources
