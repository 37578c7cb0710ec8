"""Log-probabilities of whole sequences from the last hidden states, without the logits of all tokens at once.

The output layer and the softmax run over a few tokens at a time and again in the backward pass, so that only one chunk
of logits, the largest tensor of a run with a large vocabulary, exists. Logits are not computed for tokens without loss.

Shape suffixes: T tokens of this rank, B rows, P parts of the sequence, M tokens of each part whose logits are computed,
N of them in a chunk over all parts, H hidden, V vocabulary columns of this rank, S sequences of the micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.utils.checkpoint import checkpoint

from megatron_trainer.data.values import MicroBatch
from megatron_trainer.models.logits import mask_padded_columns, num_real_columns
from megatron_trainer.models.loss_tokens import loss_tokens
from megatron_trainer.models.spec import ModelSpec
from megatron_trainjob.memory.estimate import LOGITS_AT_ONCE

CrossEntropy = Callable[[Tensor, Tensor], Tensor]
"""(logits [N, 1, V], labels [N, 1]) -> losses [N, 1] in nats."""


@dataclass(frozen=True, kw_only=True)
class SequenceSums:
    """An output_processor for Megatron's models: called with the last hidden states instead of computing logits.

    Returns [2, S] float32: the sum of the log-probabilities of each sequence's trained tokens, and of the means of
    their logits (without gradient), over the tokens of this context rank.
    """

    spec: ModelSpec
    batch: MicroBatch
    cross_entropy: CrossEntropy

    def __call__(
        self, *, hidden_states: Tensor, output_layer: nn.Module, output_weight: Tensor | None, **_: object
    ) -> Tensor:
        """hidden_states: [T, B, H], under sequence parallelism this rank's part of T."""
        num_sequences = max(self.batch.num_samples, 1)  # empty in a micro-batch that only fills up an evaluation
        sums_2S = hidden_states.new_zeros((2, num_sequences), dtype=torch.float32)
        chunks = list(self._chunks(hidden_states, split=bool(output_layer.sequence_parallel)))
        for hidden_N1H, labels_N, sequence_N, weight_N in chunks:
            call: tuple[Any, ...] = (self._token_scores, hidden_N1H, labels_N, output_layer, output_weight)
            # A single chunk can be kept.
            scores_2N = call[0](*call[1:]) if len(chunks) == 1 else checkpoint(*call, use_reentrant=False)
            # A matrix product, because index_add has no fixed order of summation on a GPU.
            sums_2S = sums_2S + (scores_2N * weight_N) @ one_hot(sequence_N, num_sequences).float()
        return sums_2S

    def _chunks(self, hidden_TBH: Tensor, *, split: bool) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """(hidden states [n, 1, H], labels, sequences, 1 where trained else 0), chunk by chunk.

        split: the output layer gathers its input over the tensor-parallel ranks, so each gives an equal part of a
        chunk.
        """
        flat_LH, batch = hidden_TBH.flatten(0, 1), self.batch
        parts, own = 1, 0
        if split:
            parts = parallel_state.get_tensor_model_parallel_world_size()
            own = parallel_state.get_tensor_model_parallel_rank()
        tokens = loss_tokens(batch.labels_BT, batch.loss_weight_BT, batch.has_loss_BT, num_parts=parts, own=own)
        sequence_PM = tokens.taken(batch.sequence_BT)
        for some, labels_N, weights_N in tokens.chunks(max(LOGITS_AT_ONCE // self._width() // parts, 1)):
            hidden_N1H = flat_LH[tokens.places(some)][:, None]
            sequence_N = sequence_PM[:, some].flatten().clamp(min=0)
            yield hidden_N1H, labels_N.clamp(min=0), sequence_N, (weights_N != 0).float()

    def _width(self) -> int:
        tensor_ranks: int = parallel_state.get_tensor_model_parallel_world_size()
        return self.spec.padded_vocab_size // tensor_ranks

    def _token_scores(
        self, hidden_N1H: Tensor, labels_N: Tensor, output_layer: nn.Module, output_weight: Tensor | None
    ) -> Tensor:
        """[2, N]: log-probability of the label, mean of the logits."""
        logits_N1V, _ = output_layer(hidden_N1H, weight=output_weight)
        with torch.no_grad():
            mean_N = logits_N1V[:, 0, : num_real_columns(logits_N1V, self.spec)].float().sum(-1) / self.spec.vocab_size
            dist.all_reduce(mean_N, group=parallel_state.get_tensor_model_parallel_group())
        losses_N1 = self.cross_entropy(mask_padded_columns(logits_N1V, self.spec), labels_N[:, None].contiguous())
        return torch.stack([-losses_N1[:, 0].float(), mean_N])
