"""Losses of embeddings against plain loops over the same random numbers, and some worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_trainer.losses import embedding, ranking
from megatron_trainer.losses.embedding import InfoNce

GROUPS = (4, 3, 2, 5)
CASES = {
    "plain": InfoNce(),
    "cold": InfoNce(temperature=0.02),
    "own": InfoNce(uses_batch=False),
    "queries": InfoNce(queries=True),
    "documents": InfoNce(documents=True),
    "masked": InfoNce(queries=True, documents=True, fake_negative_margin=0.1),
}


def embeddings() -> torch.Tensor:
    made = torch.randn(sum(GROUPS), 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return torch.nn.functional.normalize(made, dim=-1).requires_grad_()


def by_loops(rows: list[torch.Tensor], settings: InfoNce) -> torch.Tensor:
    """The mean over the groups, one similarity after the other."""
    losses = []
    for number, row in enumerate(rows):
        positive = row[0] @ row[1]
        limit = math.inf if settings.fake_negative_margin is None else float(positive) + settings.fake_negative_margin
        others: list[torch.Tensor] = []
        for other, texts in enumerate(rows):
            documents = texts[2:] if other == number else texts[1:]
            if settings.uses_batch or other == number:
                others += [row[0] @ text for text in documents if float(row[0] @ text) <= limit]
            if settings.queries and other != number and float(row[0] @ texts[0]) <= limit:
                others.append(row[0] @ texts[0])
            if settings.documents:
                others += [row[1] @ text for text in documents]
        exponents = torch.stack([positive, *others]) / settings.temperature
        losses.append(-torch.log(torch.exp(exponents[0]) / torch.exp(exponents).sum()))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("name", CASES)
def test_infonce_equals_plain_loops(name):
    ours, theirs = embeddings(), embeddings()
    loss = embedding.infonce(ours, GROUPS, CASES[name]).losses_G.mean()
    expected = by_loops(list(theirs.split(GROUPS)), CASES[name])
    assert float(loss) == pytest.approx(float(expected), abs=1e-9)
    (gradient,), (wanted,) = torch.autograd.grad(loss, ours), torch.autograd.grad(expected, theirs)
    assert gradient.numpy() == pytest.approx(wanted.numpy(), abs=1e-9)


def test_two_orthogonal_rows_by_hand():
    """Similarities 1 and 0 at temperature 1: log(1 + e^-1)."""
    eye = torch.eye(2)
    found = embedding.infonce(eye[[0, 0, 1, 1]], (2, 2), InfoNce(temperature=1.0))
    assert found.losses_G.tolist() == pytest.approx([math.log(1 + math.exp(-1))] * 2)
    assert found.positive_G.tolist() == [1, 1]
    assert found.hardest_G.isnan().all()


def test_negatives_are_repeated_and_cut():
    rows = embeddings().detach()[:7]
    repeated = embedding.infonce(rows, (4, 3), InfoNce(hard_negatives=3, uses_batch=False)).losses_G
    by_hand = torch.cat([rows[:4], rows[2:3]]), torch.cat([rows[4:], rows[6:], rows[6:]])
    expected = [embedding.infonce(row, (5,), InfoNce(uses_batch=False)).losses_G[0] for row in by_hand]
    assert repeated.tolist() == pytest.approx([float(one) for one in expected])


def test_pairs_by_hand():
    similar, label = torch.tensor([0.8, 0.7, 0.1, 0.9]), torch.tensor([1.0, 0.0, 0.0, 1.0])
    assert embedding.cosine_similarity(similar, label).tolist() == pytest.approx([0.04, 0.49, 0.01, 0.01])
    assert embedding.contrastive(similar, label).tolist() == pytest.approx([0.02, 0.02, 0.0, 0.005])
    # The nearest of the others lies at 0.3, the farthest that are alike at 0.2: none is hard.
    assert embedding.online_contrastive(similar, label).tolist() == [0.0] * 4
    # Now at 0.05 and 0.6: the pair at 0.6 is hard, and the other at 0.05.
    similar = torch.tensor([0.4, 0.95, 0.1, 0.97])
    assert embedding.online_contrastive(similar, label).tolist() == pytest.approx([0.36, 0.2025, 0.0, 0.0])


def test_documents_by_hand():
    scores = torch.tensor([0.0, 2.0, 1.0, -1.0])
    assert ranking.pointwise(scores, 1).tolist() == pytest.approx(
        [math.log(2), *(math.log(1 + math.exp(x)) for x in (2.0, 1.0, -1.0))]
    )
    total = math.exp(0) + math.exp(1) + math.exp(0.5) + math.exp(-0.5)
    assert ranking.listwise(scores, 1, temperature=2.0).tolist() == pytest.approx([math.log(total)])
    # Two positives, each among the same two negatives.
    expected = [math.log((math.exp(x) + math.exp(1) + math.exp(-1)) / math.exp(x)) for x in (0.0, 2.0)]
    assert ranking.listwise(scores, 2, temperature=1.0).tolist() == pytest.approx(expected)
    assert ranking.accuracy(scores, 2).tolist() == [0, 1, 0, 1]
    assert float(ranking.reciprocal_rank(scores, 1)) == pytest.approx(1 / 3)
    gain = (1 / math.log2(2) + 1 / math.log2(4)) / (1 / math.log2(2) + 1 / math.log2(3))
    assert float(ranking.discounted_gain(scores, 2)) == pytest.approx(gain)


def test_a_model_that_says_the_same_of_all_ranks_worst():
    same = torch.zeros(4)
    assert float(ranking.reciprocal_rank(same, 1)) == pytest.approx(1 / 4)
    assert float(ranking.discounted_gain(same, 1)) == pytest.approx(1 / math.log2(5))
