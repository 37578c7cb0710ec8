"""The chunked gated delta rule equals its definition, token by token, for every length around a chunk's."""

import pytest
import torch

from megatron_trainer.models.delta_rule import CHUNK, gated_delta_rule

TOLERANCE = 1e-5
"""float32 against float64, of outputs and gradients of about 1."""


def by_definition(query, key, value, log_decay, strength):
    """One token after the other, in float64: [B, T, N, V]."""
    query, key = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (query, key))
    state = torch.zeros(*key.shape[:1], key.shape[2], key.shape[3], value.shape[3], dtype=torch.float64)
    outputs = []
    for token in range(key.shape[1]):
        k, v, b = key[:, token, :, :, None], value[:, token], strength[:, token, :, None]
        state = state * log_decay[:, token, :, None, None].exp()
        state = state + k * (b * (v - (k * state).sum(-2)))[:, :, None]
        outputs.append((query[:, token, :, :, None] * state).sum(-2) * key.shape[3] ** -0.5)
    return torch.stack(outputs, dim=1)


@pytest.mark.parametrize("tokens", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
def test_chunks_equal_the_definition(tokens):
    torch.manual_seed(0)
    wide = [torch.randn(2, tokens, 3, size, dtype=torch.float64) for size in (8, 8, 5)]
    decay, strength = -torch.rand(2, tokens, 3, dtype=torch.float64), torch.rand(2, tokens, 3, dtype=torch.float64)
    inputs = [each.requires_grad_() for each in (*wide, decay, strength)]
    weight = torch.randn(2, tokens, 3, 5, dtype=torch.float64)
    expected = by_definition(*inputs)
    expected_gradients = torch.autograd.grad((expected * weight).sum(), inputs)
    found = gated_delta_rule(*inputs)
    gradients = torch.autograd.grad((found * weight).sum(), inputs)
    assert (found - expected).abs().max() <= TOLERANCE
    for one, other in zip(gradients, expected_gradients, strict=True):
        assert (one - other).abs().max() <= TOLERANCE * max(1.0, other.abs().max().item())


def test_a_strong_decay_is_finite():
    """A decay of e^-60 a token would overflow if the factors of a chunk were computed apart."""
    inputs = [torch.randn(1, 130, 1, size, requires_grad=True) for size in (4, 4, 4)]
    decay = torch.full((1, 130, 1), -60.0, requires_grad=True)
    outputs = gated_delta_rule(*inputs, decay, torch.full((1, 130, 1), 0.5))
    outputs.sum().backward()
    assert all(torch.isfinite(each.grad).all() for each in (*inputs, decay))
