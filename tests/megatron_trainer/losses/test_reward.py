"""The loss of reward models against TRL's own numbers and gradients on random scores, and one worked out by hand."""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_trainer.losses.reward import bradley_terry

ABSOLUTE = 1e-6


def of_trl(scores: torch.Tensor, margin: torch.Tensor | None, coefficient: float | None) -> Any:
    """Loss and gradient of TRL's RewardTrainer for the scores [2 P] of chosen and then rejected answers."""
    trainer = pytest.importorskip("trl").RewardTrainer
    scores = scores.clone().requires_grad_()

    def model(**_: Any) -> Any:
        return SimpleNamespace(logits=scores[:, None])

    model.training = True  # type: ignore[attr-defined]
    itself = SimpleNamespace(
        model=model,
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
        args=SimpleNamespace(center_rewards_coefficient=coefficient),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {"attention_mask": torch.ones(1), **({} if margin is None else {"margin": margin})}
    loss = trainer.compute_loss(itself, model, inputs)
    (gradient,) = torch.autograd.grad(loss, scores)
    return loss.detach(), gradient


@pytest.mark.parametrize("coefficient", [None, 0.01, 0.5])
@pytest.mark.parametrize("has_margin", [False, True])
def test_loss_and_gradient_equal_trls(has_margin, coefficient):
    generator = torch.Generator().manual_seed(1)
    scores, margin = 2 * torch.randn(10, generator=generator), torch.rand(5, generator=generator)
    expected_loss, expected_gradient = of_trl(scores, margin if has_margin else None, coefficient)
    own = scores.clone().requires_grad_()
    chosen, rejected = own.chunk(2)
    margin = margin if has_margin else torch.zeros(5)
    loss = bradley_terry(chosen, rejected, margin, center_coefficient=coefficient or 0.0).mean()
    (gradient,) = torch.autograd.grad(loss, own)
    torch.testing.assert_close(loss.detach(), expected_loss, atol=ABSOLUTE, rtol=ABSOLUTE)
    torch.testing.assert_close(gradient, expected_gradient, atol=ABSOLUTE, rtol=ABSOLUTE)


def test_a_loss_worked_out_by_hand():
    """c = 2, r = 0.5, margin 0.5: -log s(1) + 0.1 * 2.5^2."""
    loss = bradley_terry(torch.tensor([2.0]), torch.tensor([0.5]), torch.tensor([0.5]), center_coefficient=0.1)
    torch.testing.assert_close(loss, torch.tensor([math.log1p(math.exp(-1)) + 0.625]))
