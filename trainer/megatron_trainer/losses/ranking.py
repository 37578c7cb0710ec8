"""Losses of rerankers on the scores of a question's documents, and ranking metrics.

Shape suffix: S documents of one question, the positives first.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def pointwise(scores_S: Tensor, num_positives: int) -> Tensor:
    """[S]: binary cross entropy of the relevance of each document."""
    return functional.binary_cross_entropy_with_logits(scores_S, _fits(scores_S, num_positives), reduction="none")


def listwise(scores_S: Tensor, num_positives: int, *, temperature: float) -> Tensor:
    """[positives]: cross entropy of each positive among itself and the negatives."""
    scaled_S = scores_S / temperature
    others = scaled_S[num_positives:].logsumexp(0) if num_positives < len(scores_S) else scaled_S.new_tensor(-torch.inf)
    positives = scaled_S[:num_positives]
    return torch.logaddexp(positives, others) - positives


def accuracy(scores_S: Tensor, num_positives: int) -> Tensor:
    """[S]: 1 where the sign of the score predicts correctly whether the document is relevant."""
    return ((scores_S > 0) == (_fits(scores_S, num_positives) > 0)).float()


def reciprocal_rank(scores_S: Tensor, num_positives: int) -> Tensor:
    """1 / rank of the best positive; ties rank negatives first."""
    return 1 / (1 + (scores_S[num_positives:] >= scores_S[:num_positives].max()).sum())


def discounted_gain(scores_S: Tensor, num_positives: int) -> Tensor:
    """Normalized discounted cumulative gain over all documents (NDCG), gains 1 and 0; as for reciprocal_rank."""
    order = torch.argsort(scores_S.flip(0), descending=True, stable=True)
    fits_S = _fits(scores_S, num_positives)
    discount_S = 1 / torch.log2(torch.arange(2, len(scores_S) + 2, device=scores_S.device))
    return (fits_S.flip(0)[order] * discount_S).sum() / (fits_S * discount_S).sum()


def _fits(scores_S: Tensor, num_positives: int) -> Tensor:
    return (torch.arange(len(scores_S), device=scores_S.device) < num_positives).float()
