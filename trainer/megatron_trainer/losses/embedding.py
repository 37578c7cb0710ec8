"""Losses of embeddings: InfoNCE, and those of the cosine similarity of two texts.

Every function takes normalized embeddings. Sources: van den Oord et al. 2018 (InfoNCE); Hadsell et al. 2006
(contrastive); the Qwen3-Embedding report (similarities of queries and of documents among themselves).
Shape suffixes: G groups, N documents of all groups, D numbers of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

MARGIN = 0.5
"""Cosine distance beyond which dissimilar texts have zero loss."""


@dataclass(frozen=True, kw_only=True)
class InfoNce:
    """temperature: divides similarities. uses_batch: other groups' documents are negatives too. hard_negatives: number
    used of each group, None for all. fake_negative_margin: negatives that are more similar than the positive by this
    are excluded, None excludes none. queries, documents: similarities to the other queries, and of the positive to the
    other documents, are added to the softmax.
    """

    temperature: float = 0.1
    uses_batch: bool = True
    hard_negatives: int | None = None
    fake_negative_margin: float | None = None
    queries: bool = False
    documents: bool = False


@dataclass(frozen=True, kw_only=True)
class Similarities:
    """Results of infonce: its loss for each group, and the similarity of positive and negatives, [G] each.

    hardest_G: the largest of the group's negatives; NaN if it has none.
    """

    losses_G: Tensor
    positive_G: Tensor
    negative_G: Tensor
    hardest_G: Tensor


def infonce(embeddings_SD: Tensor, groups: Sequence[int], settings: InfoNce) -> Similarities:
    """Cross entropy of the query's positive among the documents.

    embeddings_SD: query, positive, negatives of each group. groups: number of embeddings of each.
    """
    queries, documents, owners = _places(groups, settings.hard_negatives)
    query_GD, document_ND = embeddings_SD[queries], embeddings_SD[documents]
    owner_N = torch.tensor(owners, device=embeddings_SD.device)
    own_G = torch.arange(len(groups), device=embeddings_SD.device)
    is_own_GN = owner_N == own_G[:, None]
    positive_G = is_own_GN.int().argmax(1)  # the first document of each group
    similar_GN = query_GD @ document_ND.t()
    is_positive_GN = functional.one_hot(positive_G, len(owners)).bool()
    limit_G1 = similar_GN.detach()[own_G, positive_G][:, None] + (settings.fake_negative_margin or 0.0)

    def without(found: Tensor, hidden: Tensor) -> Tensor:
        return found.masked_fill(hidden, -torch.inf)

    is_hidden_GN = torch.zeros_like(is_own_GN) if settings.uses_batch else ~is_own_GN
    is_itself_GG = own_G == own_G[:, None]
    similar_GG = query_GD @ query_GD.t()
    if settings.fake_negative_margin is not None:
        is_hidden_GN = is_hidden_GN | ((similar_GN > limit_G1) & ~is_positive_GN)
        is_itself_GG = is_itself_GG | (similar_GG > limit_G1)
    parts = [without(similar_GN, is_hidden_GN)]
    if settings.queries:
        parts.append(without(similar_GG, is_itself_GG))
    if settings.documents:
        parts.append(without(document_ND[positive_G] @ document_ND.t(), is_positive_GN))
    losses_G = functional.cross_entropy(torch.cat(parts, 1) / settings.temperature, positive_G, reduction="none")
    return _compared(losses_G, similar_GN.detach(), is_own_GN, is_positive_GN)


def _places(groups: Sequence[int], hard_negatives: int | None) -> tuple[list[int], list[int], list[int]]:
    """(queries, documents) as indices of embeddings, and the group of each document."""
    queries, documents, owners, start = [], [], [], 0
    for number, size in enumerate(groups):
        negatives = list(range(start + 2, start + size))
        if hard_negatives is not None:
            negatives = [negatives[place % len(negatives)] for place in range(hard_negatives)] if negatives else []
        queries.append(start)
        documents += [start + 1, *negatives]
        owners += [number] * (1 + len(negatives))
        start += size
    return queries, documents, owners


def _compared(losses_G: Tensor, similar_GN: Tensor, is_own_GN: Tensor, is_positive_GN: Tensor) -> Similarities:
    is_negative_GN = is_own_GN & ~is_positive_GN
    hardest_G = similar_GN.masked_fill(~is_negative_GN, -torch.inf).amax(1)
    return Similarities(
        losses_G=losses_G,
        positive_G=similar_GN[is_positive_GN],
        negative_G=(similar_GN * is_negative_GN).sum(1) / is_negative_GN.sum(1),
        hardest_G=hardest_G.masked_fill(hardest_G.isinf(), torch.nan),
    )


def cosine_similarity(similar_G: Tensor, label_G: Tensor) -> Tensor:
    """[G]: squared difference of similarity and label."""
    return (similar_G - label_G).square()


def contrastive(similar_G: Tensor, label_G: Tensor) -> Tensor:
    """[G]: half the squared distance of similar texts (label 1), or half the squared shortfall to the margin."""
    distance_G = 1 - similar_G
    return (label_G * distance_G.square() + (1 - label_G) * functional.relu(MARGIN - distance_G).square()) / 2


def online_contrastive(similar_G: Tensor, label_G: Tensor) -> Tensor:
    """[G]: the squares of `contrastive` for the hard pairs only, to be summed.

    Hard pairs are similar ones farther apart than the nearest dissimilar ones, and dissimilar ones nearer than the
    farthest similar ones; with one pair of a kind, the other kind is compared with its own mean.
    """
    distance_G, is_alike_G = 1 - similar_G, label_G == 1
    alike, others = distance_G[is_alike_G], distance_G[~is_alike_G]
    nearest = others.min() if len(others) > 1 else alike.mean()
    farthest = alike.max() if len(alike) > 1 else others.mean()
    is_hard_G = torch.where(is_alike_G, distance_G > nearest, distance_G < farthest)
    losses_G = torch.where(is_alike_G, distance_G.square(), functional.relu(MARGIN - distance_G).square())
    return losses_G * is_hard_G


PAIRWISE = {
    "cosine_similarity": cosine_similarity,
    "contrastive": contrastive,
    "online_contrastive": online_contrastive,
}
"""By loss_type: (similarity [G] of two texts, label [G]) -> losses [G]."""
SUMMED = ("online_contrastive",)
"""Losses of a micro-batch as a whole, which are summed over its groups; the others are means over groups."""
