"""The tokens of which logits are computed: those with a loss, unless nearly all have one.

In supervised fine-tuning prompts and padding carry no loss, and with a large vocabulary their logits are a tenth of a
step. Which tokens have one is known on the host, where batches are made: the device is never asked for it.

Shape suffixes: B rows, T tokens of this context rank, L = T x B, P parts into which tensor-parallel ranks split the
sequence (1 without sequence parallelism), M tokens of each part, N = P x tokens of a chunk, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LEAST_SKIPPED = 1 / 64
"""Share of tokens without a loss below which all take part: copies of rows would cost what they save."""


@dataclass(frozen=True, kw_only=True)
class LossTokens:
    """size: of a part, T x B / P. places_PM: where the tokens are in their part, int64; None for all of them.

    own: the part that is this rank's.
    """

    size: int
    labels_PM: Tensor
    weights_PM: Tensor
    own: int
    places_PM: Tensor | None

    def chunks(self, at_once: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(which of the M tokens, labels [N], weights [N]), at most at_once tokens of each part.

        The output layer gathers a chunk of equal size from each part, in their order: two parts of 4 tokens, chunks of
        2 each: 0 1 4 5, then 2 3 6 7.
        """
        length = self.labels_PM.shape[1]
        for start in range(0, length, at_once):
            some = slice(start, min(start + at_once, length))
            yield some, self.labels_PM[:, some].flatten(), self.weights_PM[:, some].flatten()

    def taken(self, values_BT: Tensor) -> Tensor:
        """Values of the tokens that take part [P, M]."""
        return _taken(values_BT, len(self.labels_PM), self.places_PM)

    def places(self, some: slice) -> slice | Tensor:
        """Where these of the M tokens are among this rank's hidden states."""
        return some if self.places_PM is None else self.places_PM[self.own, some]

    def of(self, hidden_LH: Tensor) -> Tensor:
        """The hidden states of this rank's M tokens."""
        return hidden_LH if self.places_PM is None else hidden_LH[self.places_PM[self.own]]

    def spread(self, values_PM: Tensor) -> Tensor:
        """Values of all tokens [L], 0 for those that take no part."""
        if self.places_PM is None:
            return values_PM.flatten()
        return values_PM.new_zeros(len(values_PM), self.size).scatter_(1, self.places_PM, values_PM).flatten()


def loss_tokens(
    labels_BT: Tensor, weights_BT: Tensor, has_loss_BT: NDArray[np.bool_] | None, *, num_parts: int, own: int
) -> LossTokens:
    """has_loss_BT: where weights are not 0; None if the host does not know, then all tokens take part."""
    on_host = None if has_loss_BT is None else _places(has_loss_BT.T.reshape(num_parts, -1))
    places_PM = None if on_host is None else _on_device(on_host, labels_BT.device)
    return LossTokens(
        size=labels_BT.numel() // num_parts,
        labels_PM=_taken(labels_BT, num_parts, places_PM),
        weights_PM=_taken(weights_BT, num_parts, places_PM),
        own=own,
        places_PM=places_PM,
    )


def _taken(values_BT: Tensor, num_parts: int, places_PM: Tensor | None) -> Tensor:
    values_PL = values_BT.t().reshape(num_parts, -1)
    return values_PL if places_PM is None else values_PL.gather(1, places_PM)


def _places(has_loss_PL: NDArray[np.bool_]) -> NDArray[np.int64] | None:
    """The places of tokens with a loss in each part, equally many in all: a part that has fewer adds tokens without.

    At least one, since all ranks take part in the output layer's collectives, and its weights get a gradient. None
    where all tokens may as well take part.
    """
    count = max(int(has_loss_PL.sum(1).max()), 1)
    if count > (1 - LEAST_SKIPPED) * has_loss_PL.shape[1]:
        return None
    return np.stack([_first(has_loss_L, count) for has_loss_L in has_loss_PL])


def _first(has_loss_L: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    with_loss = np.flatnonzero(has_loss_L)
    return np.concatenate([with_loss, np.flatnonzero(~has_loss_L)[: count - len(with_loss)]])


def _on_device(places: NDArray[np.int64], device: torch.device) -> Tensor:
    """Copied from memory that a GPU reads by itself: otherwise the host would wait for all kernels before."""
    found = torch.from_numpy(places)
    return found.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else found.to(device)
