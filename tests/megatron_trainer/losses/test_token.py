"""Token losses against values worked out by hand."""

import math

import torch

from megatron_trainer.losses import token


def test_dynamic_fine_tuning_weighs_each_token_by_its_own_probability_without_gradient():
    """p = 0.5: loss = -0.5 log 0.5; d/dl (exp(-sg(l)) * l) = exp(-l) = 0.5."""
    losses = torch.tensor([[math.log(2.0)]], requires_grad=True)
    result = token.dynamic_fine_tuning(losses)
    result.sum().backward()
    torch.testing.assert_close(result.detach(), torch.tensor([[0.5 * math.log(2.0)]]))
    torch.testing.assert_close(losses.grad, torch.tensor([[0.5]]))


def test_a_token_without_weight_cannot_spoil_the_sum_even_when_it_is_not_a_number():
    losses = torch.tensor([[1.0, float("nan"), 3.0]])
    assert token.weighted_sum(losses, torch.tensor([[1.0, 0.0, 0.5]])).item() == 2.5


def test_channels_are_pooled_over_their_own_tokens():
    losses = torch.tensor([[1.0, 2.0, 4.0, 8.0]])
    weights = torch.tensor([[1.0, 0.0, 1.0, 2.0]])
    channels = torch.tensor([[0, 0, 1, 1]])
    expected = torch.tensor([[1.0, 1.0], [4.0 + 16.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(token.per_channel(losses, weights, channels, 3), expected)
