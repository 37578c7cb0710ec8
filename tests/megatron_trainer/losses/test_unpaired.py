"""Losses of single answers against TRL's own numbers and gradients on random inputs, and values worked out by hand."""

from __future__ import annotations

import math
from collections import defaultdict
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_trainer.losses.unpaired import LOSSES, UnpairedSettings, unpaired_loss

NUM_ANSWERS, NUM_TOKENS = 6, 9
ABSOLUTE = 1e-6


def random_case(seed: int = 5) -> dict[str, torch.Tensor]:
    """Log-probabilities of tokens [S, T - 1] of answers and of mismatched ones, reference sums, labels."""
    generator = torch.Generator().manual_seed(seed)
    answer = torch.zeros(NUM_ANSWERS, NUM_TOKENS, dtype=torch.long)
    for row in range(NUM_ANSWERS):
        answer[row, 2 + row % 3 : NUM_TOKENS - row % 2] = 1
    own, other = (-torch.rand(2, NUM_ANSWERS, NUM_TOKENS - 1, generator=generator) * answer[:, 1:]).unbind()
    noise = torch.randn(2, NUM_ANSWERS, generator=generator)
    return {
        "tokens": own,
        "mismatched": other,
        "answer": answer,
        "reference": own.sum(1) + noise[0],
        "reference_mismatched": other.sum(1) - 0.5 - noise[1].abs(),
        "label": torch.tensor([True, False, True, True, False, True]),
    }


def of_trl(case: dict[str, torch.Tensor], name: str, **given: float) -> Any:
    """Loss, gradient and KL estimate of TRL's KTOTrainer on these log-probabilities."""
    trainer = pytest.importorskip("trl").KTOTrainer
    tokens = case["tokens"].clone().requires_grad_()
    nothing = torch.zeros(tokens.shape)

    def model(*, input_ids: torch.Tensor, **_: Any) -> Any:
        is_mismatched = bool((input_ids == 2).all())
        values = case["mismatched"] if is_mismatched else tokens
        return SimpleNamespace(log_probs=values, entropy=nothing, mean_logits=nothing)

    model.training = True  # type: ignore[attr-defined]
    here = SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=lambda x: x, unwrap_model=lambda x: x)
    itself = SimpleNamespace(
        model=model,
        accelerator=here,
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        calculate_KL=name == "kto",
        loss_type=name,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
        maybe_activation_offload_context=nullcontext(),
        **given,
    )
    itself._compute_kl_logps = lambda model, batch: trainer._compute_kl_logps(itself, model, batch)
    ones = torch.ones_like(case["answer"])
    inputs = {
        "input_ids": ones,
        "attention_mask": ones,
        "completion_mask": case["answer"],
        "KL_input_ids": 2 * ones,
        "KL_attention_mask": ones,
        "KL_completion_mask": case["answer"],
        "label": case["label"],
        "ref_logps": case["reference"],
        "ref_KL_logps": case["reference_mismatched"],
    }
    loss = trainer._compute_loss(itself, model, inputs, False)
    (gradient,) = torch.autograd.grad(loss, tokens)
    return loss.detach(), gradient, itself._metrics["train"]["kl"][0]


def ours(case: dict[str, torch.Tensor], name: str, *, divergence: float, **given: float) -> Any:
    tokens = case["tokens"].clone().requires_grad_()
    losses = unpaired_loss(
        name,
        tokens.sum(1) - case["reference"],
        case["label"],
        divergence=torch.tensor(divergence),
        settings=UnpairedSettings(**given),
    )
    (gradient,) = torch.autograd.grad(losses.mean(), tokens)
    return losses.mean().detach(), gradient


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, 2.5)])
@pytest.mark.parametrize("beta", [0.1, 0.8])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_and_its_gradient_equal_trls(name, beta, weights):
    case = random_case()
    given = {"beta": beta, "desirable_weight": weights[0], "undesirable_weight": weights[1]}
    expected_loss, expected_gradient, divergence = of_trl(case, name, **given)
    if name == "kto":
        mean = (case["mismatched"].sum(1) - case["reference_mismatched"]).mean().item()
        assert divergence == pytest.approx(mean), "the estimate is the mean of the mismatched log-ratios"
        assert mean > 0.5, "a divergence of 0 proves nothing"
    loss, gradient = ours(case, name, divergence=divergence, **given)
    torch.testing.assert_close(loss, expected_loss, atol=ABSOLUTE, rtol=ABSOLUTE)
    torch.testing.assert_close(gradient, expected_gradient, atol=ABSOLUTE, rtol=ABSOLUTE)
    assert gradient.abs().max() > 0


def test_losses_equal_values_worked_out_by_hand():
    """Ratios 2 and -1, beta 0.5, divergence 1: rewards 1 and -0.5, scaled divergence 0.5.

    kto: 1 - s(1 - 0.5) where desirable, 1 - s(0.5 + 0.5) where not; apo_zero_unpaired: 1 - s(1), s(-0.5).
    """
    settings = UnpairedSettings(beta=0.5, desirable_weight=2.0, undesirable_weight=3.0)
    ratio, label = torch.tensor([2.0, -1.0]), torch.tensor([True, False])

    def s(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    expected = {"kto": [2 * (1 - s(0.5)), 3 * (1 - s(1.0))], "apo_zero_unpaired": [2 * (1 - s(1.0)), 3 * s(-0.5)]}
    assert set(expected) == set(LOSSES)
    for name, values in expected.items():
        losses = unpaired_loss(name, ratio, label, divergence=torch.tensor(1.0), settings=settings)
        torch.testing.assert_close(losses, torch.tensor(values))
