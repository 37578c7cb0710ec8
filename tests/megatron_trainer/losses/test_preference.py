"""Preference losses against TRL's own numbers and gradients on random inputs, and against values worked out by hand."""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_trainer.losses.preference import (
    LOSSES,
    PairLogProbabilities,
    PreferenceSettings,
    preference_loss,
)

NUM_PAIRS, NUM_TOKENS = 5, 12
OF_THE_DIFFERENCE = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")
WITH_NOISE = ("exo_pair", "robust", "aot", "aot_unpaired")
ABSOLUTE = 1e-6


def random_case(seed: int = 3) -> dict[str, torch.Tensor]:
    """Log-probabilities of tokens [2 P, T - 1], reference sums, and which tokens belong to the answers."""
    generator = torch.Generator().manual_seed(seed)
    answer = torch.zeros(2 * NUM_PAIRS, NUM_TOKENS, dtype=torch.long)
    for row in range(2 * NUM_PAIRS):
        answer[row, int(torch.randint(1, 5, (1,), generator=generator)) : 12 - row % 4] = 1
    tokens = -torch.rand(2 * NUM_PAIRS, NUM_TOKENS - 1, generator=generator) * answer[:, 1:]
    reference = (tokens + 0.4 * torch.randn(tokens.shape, generator=generator) * answer[:, 1:]).sum(1)
    return {"tokens": tokens, "answer": answer, "reference": reference}


def of_trl(case: dict[str, torch.Tensor], types: list[str], weights: list[float], **given: Any) -> Any:
    """Loss and gradient of TRL's DPOTrainer on these log-probabilities."""
    trainer = pytest.importorskip("trl").DPOTrainer
    tokens = case["tokens"].clone().requires_grad_()
    nothing = torch.zeros(tokens.shape)
    outputs = SimpleNamespace(log_probs=tokens, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())

    def model(**_: Any) -> Any:
        return outputs

    model.training = True  # type: ignore[attr-defined]
    here = SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x)
    chosen, rejected = case["reference"].chunk(2)
    itself = SimpleNamespace(
        model=model,
        accelerator=here,
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        use_weighting=False,
        loss_types=types,
        loss_weights=weights,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
        args=SimpleNamespace(discopop_tau=given.pop("tau", 0.05)),
        beta=given.pop("beta", 0.1),
        label_smoothing=given.pop("label_smoothing", 0.0),
        f_divergence_type=given.pop("divergence", "reverse_kl"),
        f_alpha_divergence_coef=given.pop("alpha", 0.5),
    )
    assert not given
    inputs = {
        "input_ids": torch.ones_like(case["answer"]),
        "attention_mask": torch.ones_like(case["answer"]),
        "completion_mask": case["answer"],
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    loss = trainer._compute_loss(itself, model, inputs, False)
    (gradient,) = torch.autograd.grad(loss, tokens)
    return loss.detach(), gradient


def ours(case: dict[str, torch.Tensor], types: list[str], weights: list[float], **given: Any) -> Any:
    tokens = case["tokens"].clone().requires_grad_()
    mask = case["answer"][:, 1:]
    chosen, rejected = tokens.sum(1).chunk(2)
    num_chosen, num_rejected = mask.sum(1).float().chunk(2)
    reference_chosen, reference_rejected = case["reference"].chunk(2)
    pairs = PairLogProbabilities(
        chosen_P=chosen,
        rejected_P=rejected,
        reference_chosen_P=reference_chosen,
        reference_rejected_P=reference_rejected,
        num_chosen_P=num_chosen,
        num_rejected_P=num_rejected,
        chosen_loss=-tokens[:NUM_PAIRS][mask[:NUM_PAIRS].bool()].mean(),
    )
    loss = preference_loss(pairs, PreferenceSettings(**given), types=types, weights=weights).mean()
    (gradient,) = torch.autograd.grad(loss, tokens)
    return loss.detach(), gradient


def check(types: list[str], weights: list[float], **given: Any) -> None:
    case = random_case()
    loss, gradient = ours(case, types, weights, **given)
    theirs = ["aot_unpaired" if name == "aot_pair" else name for name in types]
    expected_loss, expected_gradient = of_trl(case, theirs, weights, **given)
    # Squares of hundreds of nats, as in sppo_hard, have no six digits after the point in float32.
    torch.testing.assert_close(loss, expected_loss, atol=ABSOLUTE, rtol=ABSOLUTE)
    torch.testing.assert_close(gradient, expected_gradient, atol=ABSOLUTE, rtol=ABSOLUTE)
    assert gradient.abs().max() > 0, "a loss without a gradient proves nothing"


@pytest.mark.parametrize("beta", [0.1, 0.5])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_and_its_gradient_equal_trls(name, beta):
    check([name], [1.0], beta=beta, label_smoothing=1e-3 if name == "exo_pair" else 0.0)


@pytest.mark.parametrize("name", WITH_NOISE)
def test_label_noise_equals_trls(name):
    check([name], [1.0], label_smoothing=0.2)


@pytest.mark.parametrize("divergence", ["forward_kl", "js_divergence", "alpha_divergence"])
@pytest.mark.parametrize("name", OF_THE_DIFFERENCE)
def test_every_divergence_equals_trls(name, divergence):
    check([name], [1.0], divergence=divergence, label_smoothing=1e-3 if name == "exo_pair" else 0.0)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 1.7])
def test_alpha_divergences_of_every_coefficient_equal_trls(alpha):
    check(["sigmoid"], [1.0], divergence="alpha_divergence", alpha=alpha)


def test_discopops_temperature_equals_trls():
    check(["discopop"], [1.0], tau=0.5, beta=0.5)


def test_weighted_losses_are_added_as_trl_adds_them():
    check(["sigmoid", "bco_pair", "sft"], [0.8, 0.2, 1.5])


def hand(chosen: float = 1.0, rejected: float = -1.0, *, tokens: float = 2.0) -> PairLogProbabilities:
    """One pair whose reference is 0 everywhere, so that log-ratios are what is given."""
    zero = torch.zeros(1)
    return PairLogProbabilities(
        chosen_P=torch.tensor([chosen]),
        rejected_P=torch.tensor([rejected]),
        reference_chosen_P=zero,
        reference_rejected_P=zero,
        num_chosen_P=torch.tensor([tokens]),
        num_rejected_P=torch.tensor([tokens]),
        chosen_loss=torch.tensor(0.25),
    )


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def s(x: float) -> float:
    return 1 / (1 + math.exp(-x))


HALF = {"beta": 0.5}
BY_HAND = {
    # c = 1, r = -1, z = 2, beta = 0.5: beta z = 1
    "sigmoid": (HALF, -log_sigmoid(1)),
    "sigmoid with noise": (HALF | {"label_smoothing": 0.1}, -0.9 * log_sigmoid(1) - 0.1 * log_sigmoid(-1)),
    "sigmoid_norm": (HALF, -log_sigmoid(0.5)),  # two tokens: z = 0.5 + 0.5
    "hinge": ({"beta": 0.25}, 0.5),
    "ipo": (HALF, 0.0),  # two tokens: z = 1 = 1 / (2 * 0.5)
    "robust": (HALF | {"label_smoothing": 0.25}, (-0.75 * log_sigmoid(1) + 0.25 * log_sigmoid(-1)) / 0.5),
    "exo_pair": (
        HALF | {"label_smoothing": 0.5},
        s(1) * (log_sigmoid(1) - math.log(0.5)) + s(-1) * (log_sigmoid(-1) - math.log(0.5)),
    ),
    "exo_pair without noise": (
        HALF,
        s(1) * (log_sigmoid(1) - math.log(0.999)) + s(-1) * (log_sigmoid(-1) - math.log(0.001)),
    ),
    "nca_pair": (HALF, -log_sigmoid(0.5) - 0.5 * log_sigmoid(-0.5) - 0.5 * log_sigmoid(0.5)),
    "bco_pair": (HALF, -2 * log_sigmoid(0.5)),
    "sppo_hard": (HALF, 0.0),  # half = 1
    "aot": (HALF, -log_sigmoid(1)),
    "aot_pair": (HALF, -log_sigmoid(1)),
    "aot_unpaired": (HALF, -log_sigmoid(1)),
    "apo_zero": (HALF, 1 - s(0.5) + s(-0.5)),
    "apo_down": (HALF, s(0.5) + 1 - s(1)),
    "discopop": (HALF | {"tau": 1.0}, -log_sigmoid(1) * (1 - s(1)) + math.exp(-1) * s(1)),
    "sft": ({}, 0.25),
    # scores 1 - 1/e and 1 - e
    "sigmoid forward": (HALF | {"divergence": "forward_kl"}, -log_sigmoid(0.5 * (math.e - 1 / math.e))),
    "sigmoid js": (HALF | {"divergence": "js_divergence"}, -log_sigmoid(0.5 * (log_sigmoid(1) - log_sigmoid(-1)))),
    # alpha 2: scores e - 1 and 1/e - 1
    "sigmoid alpha": (
        HALF | {"divergence": "alpha_divergence", "alpha": 2.0},
        -log_sigmoid(0.5 * (math.e - 1 / math.e)),
    ),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_losses_equal_values_worked_out_by_hand(case):
    given, expected = BY_HAND[case]
    loss = preference_loss(hand(), PreferenceSettings(**given), types=[case.split()[0]], weights=[1.0])
    torch.testing.assert_close(loss, torch.tensor([expected]), atol=1e-6, rtol=1e-6)


def test_every_loss_is_worked_out_by_hand():
    assert {case.split()[0] for case in BY_HAND} == set(LOSSES)


def test_optimal_transport_sorts_the_pairs():
    """Chosen ratios (3, 1) and rejected (0, 2): paired as they stand z = 3, -1; sorted z = 1 - 0, 3 - 2."""
    zero, tokens = torch.zeros(2), torch.ones(2)
    pairs = PairLogProbabilities(
        chosen_P=torch.tensor([3.0, 1.0]),
        rejected_P=torch.tensor([0.0, 2.0]),
        reference_chosen_P=zero,
        reference_rejected_P=zero,
        num_chosen_P=tokens,
        num_rejected_P=tokens,
        chosen_loss=torch.tensor(0.0),
    )
    settings = PreferenceSettings(beta=1.0)
    torch.testing.assert_close(LOSSES["aot_unpaired"](pairs, settings), torch.full((2,), -log_sigmoid(1)))
    torch.testing.assert_close(
        LOSSES["aot"](pairs, settings), torch.tensor([1 + math.log1p(math.exp(-1)), -log_sigmoid(3)])
    )
