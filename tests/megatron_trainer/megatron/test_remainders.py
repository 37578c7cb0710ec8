"""bfloat16 weights and remainders against the float32 numbers that they stand for, bit by bit."""

import pytest
import torch

from megatron_trainer.megatron.patches import fused_adam
from megatron_trainer.megatron.patches.fused_adam import in_pieces, pieces
from megatron_trainer.megatron.patches.remainders import rebuilt, split


def numbers() -> torch.Tensor:
    """float32 numbers of every exponent, and all sorts of low halves around a few weights, midway ones included."""
    generator = torch.Generator().manual_seed(1)
    everywhere = torch.randint(-(2**31), 2**31 - 1, (100_000,), generator=generator).to(torch.int32)
    low = torch.tensor([0, 1, 0x7FFE, 0x7FFF, 0x8000, 0x8001, 0xFFFE, 0xFFFF], dtype=torch.int32)
    high = torch.tensor([0, 1, 0x3F7F, 0x3F80, 0x3F81, -1 << 15, -1 << 14], dtype=torch.int32) << 16
    bits = torch.cat([everywhere, (high[:, None] | low).flatten()])
    return bits.view(torch.float32)


def finite(main: torch.Tensor) -> torch.Tensor:
    return main[main.bfloat16().isfinite()]


def test_what_is_split_is_rebuilt_bit_by_bit():
    main = numbers()
    weight, remainder = split(main, torch.full_like(main, float("nan"), dtype=torch.bfloat16))
    assert (weight.dtype, remainder.dtype) == (torch.bfloat16, torch.int16)
    assert rebuilt(weight, remainder).view(torch.int32).equal(main.view(torch.int32))


def test_the_weight_is_the_nearest_one():
    main = finite(numbers())
    weight, _ = split(main, torch.full_like(main, float("nan"), dtype=torch.bfloat16))
    is_midway = (main.view(torch.int32) & 0xFFFF) == 0x8000
    assert weight[~is_midway].equal(main.bfloat16()[~is_midway])
    assert (weight[is_midway].float().abs() > main[is_midway].abs()).all()


def test_a_loaded_weight_that_is_as_near_stays():
    """torch rounds a number midway to the even neighbor: the main parameter is then the next one toward zero."""
    main = finite(numbers())
    weight, remainder = split(main, main.bfloat16())
    assert weight.equal(main.bfloat16())
    moved = main.view(torch.int32) - rebuilt(weight, remainder).view(torch.int32)
    is_midway = (main.view(torch.int32) & 0xFFFF) == 0x8000
    assert set(moved[~is_midway].tolist()) == {0}
    assert set(moved[is_midway].tolist()) == {0, 1}


def test_a_weight_without_remainder_is_itself():
    weight = finite(numbers()).bfloat16()
    assert rebuilt(weight, torch.zeros_like(weight, dtype=torch.int16)).equal(weight.float())


@pytest.mark.parametrize(
    ("sizes", "limit", "expected"),
    [([], 4, []), ([1, 2, 3], 3, [[1, 2], [3]]), ([9, 1, 1], 4, [[9], [1, 1]]), ([1, 9], 4, [[1], [9]])],
    ids=str,
)
def test_a_step_takes_parameters_in_pieces_in_their_order(sizes, limit, expected):
    found = pieces([torch.empty(size) for size in sizes], limit)
    assert [[tensor.numel() for tensor in piece] for piece in found] == expected


def test_pieces_of_a_group_are_one_step_and_a_group_without_parameters_has_none(monkeypatch):
    """Where a rank holds nothing but a part of the embedding, its group of norms is empty."""
    monkeypatch.setattr(fused_adam, "CONVERTED_AT_ONCE", 2)
    three = [torch.zeros(2) for _ in range(3)]
    groups = [{"params": three, "lr": 0.5}, {"params": []}, {"params": three, "lr": 0.1, "step": 4}]
    taken = []

    def take(part):
        part["step"] = part.get("step", 0) + 1
        taken.append((part["lr"], part["step"], len(part["params"])))

    in_pieces(groups, take)
    assert taken == [(0.5, 1, 1)] * 3 + [(0.1, 5, 1)] * 3
    assert [group.get("step") for group in groups] == [1, None, 5]
    assert [len(group["params"]) for group in groups] == [3, 0, 3]
