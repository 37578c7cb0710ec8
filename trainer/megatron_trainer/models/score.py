"""The head of a classifier or reward model: scores each sequence from the hidden state of its last token.

Replaces the output layer on the last pipeline stage. Every rank scores the tokens that it holds, with zeros for the
others; the sums over the ranks are the scores. There is no bias, so scores add up as the states do, and only [S, C]
numbers are communicated.

Shape suffixes: T tokens of this rank, B rows, L = T x B, H hidden, S sequences of the micro-batch, C scores of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.transformer import TransformerConfig
from torch import Tensor, nn
from torch.nn.functional import linear, one_hot

from megatron_trainer import parallel
from megatron_trainer.data.values import MicroBatch
from megatron_trainer.megatron.marks import sum_over_sequence


@dataclass(frozen=True, kw_only=True)
class Head:
    """num_scores: scores per sequence, 0 to return the hidden state itself. seed: for weights that are not stored
    anywhere.

    config: its changes to config.json, so that transformers loads the model with the head. files: JSON files beside it.
    """

    num_scores: int
    seed: int
    config: Mapping[str, Any]
    files: Mapping[str, Any] = field(default_factory=dict)


class ScoreLayer(nn.Module):
    """hidden states [..., H] -> scores [..., C], in the type of the parameters; without a bias, as transformers has it.

    Replicated over tensor-parallel ranks. Under sequence parallelism they score different tokens, and the attribute on
    the weight makes finalize_model_grads sum the gradients.
    """

    def __init__(self, config: TransformerConfig, num_scores: int) -> None:
        super().__init__()
        self.sequence_parallel = config.sequence_parallel
        self.weight = nn.Parameter(torch.empty(num_scores, config.hidden_size, dtype=config.params_dtype))
        sum_over_sequence(self.weight, is_summed=config.sequence_parallel)
        if config.perform_initialization:
            config.init_method(self.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """The scores of each hidden state."""
        return linear(hidden, self.weight)


class NoOutput(nn.Module):
    """Replaces the output layer where nothing follows the last norm."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.sequence_parallel = config.sequence_parallel
        self.register_buffer("weight", torch.zeros(1))  # megatron-core's checkpoints want an entry of this name


@dataclass(frozen=True, kw_only=True)
class SequenceStates:
    """An output_processor for Megatron's models: the last hidden state of each sequence, [S, H] float32.

    The same on all ranks of a stage. whole: the micro-batch. batch: this context rank's part of it.
    """

    whole: MicroBatch
    batch: MicroBatch

    def __call__(self, *, hidden_states: Tensor, output_layer: NoOutput, **_: object) -> Tensor:
        """hidden_states: [T, B, H], under sequence parallelism this rank's part of T."""
        split = output_layer.sequence_parallel
        return sum_of_parts(last_hidden_states(hidden_states, self.whole, self.batch, split=split).float(), split=split)


@dataclass(frozen=True, kw_only=True)
class SequenceScores:
    """An output_processor for Megatron's models: scores [S, C], float32, the same on all ranks of a stage.

    whole: the micro-batch. batch: this context rank's part of it.
    """

    whole: MicroBatch
    batch: MicroBatch

    def __call__(self, *, hidden_states: Tensor, output_layer: ScoreLayer, **_: object) -> Tensor:
        """hidden_states: [T, B, H], under sequence parallelism this rank's part of T."""
        own_SH = last_hidden_states(hidden_states, self.whole, self.batch, split=output_layer.sequence_parallel)
        return sum_of_parts(output_layer(own_SH).float(), split=output_layer.sequence_parallel)


@dataclass(frozen=True, kw_only=True)
class SequenceAnswers:
    """An output_processor for Megatron's models: [S, 1] float32, the logit of `positive` after each sequence minus that
    of `negative`. The same on all ranks of a stage. whole, batch: as for SequenceScores.
    """

    whole: MicroBatch
    batch: MicroBatch
    positive: int
    negative: int

    def __call__(
        self, *, hidden_states: Tensor, output_layer: nn.Module, output_weight: Tensor | None, **_: object
    ) -> Tensor:
        """hidden_states: [T, B, H], under sequence parallelism this rank's part of T."""
        split = bool(output_layer.sequence_parallel)
        own_SH = last_hidden_states(hidden_states, self.whole, self.batch, split=split)
        logits_SV = output_layer(own_SH[:, None], weight=output_weight)[0][:, 0]
        if split:  # the layer has gathered the states of all ranks, zeros where a rank does not hold the token
            logits_SV = logits_SV.unflatten(0, (parallel_state.get_tensor_model_parallel_world_size(), -1)).sum(0)
        part_S1 = (self._column(logits_SV, self.positive) - self._column(logits_SV, self.negative))[:, None]
        return parallel.sum_of_tensor_parts(parallel.sum_of_context_parts(part_S1))

    def _column(self, logits_SV: Tensor, token: int) -> Tensor:
        """The logits of a token where this rank has its column, else zeros."""
        first = parallel_state.get_tensor_model_parallel_rank() * logits_SV.shape[1]
        is_here = first <= token < first + logits_SV.shape[1]
        return logits_SV[:, token - first if is_here else 0].float() * float(is_here)


def last_hidden_states(hidden_TBH: Tensor, whole: MicroBatch, batch: MicroBatch, *, split: bool) -> Tensor:
    """[S, H]: the hidden state of each sequence's last token where this rank holds it, else zeros.

    split: whether the tensor-parallel ranks hold parts of T.
    """
    num_sequences = max(whole.num_samples, 1)  # empty in a micro-batch that only fills up an evaluation
    length_S = one_hot(whole.sequence_BT[whole.sequence_BT >= 0], num_sequences).sum(0)
    sequence_BT = batch.sequence_BT.clamp(min=0)
    is_last_BT = (batch.position_ids_BT == length_S[sequence_BT] - 1) & (batch.sequence_BT >= 0)
    is_last_L, sequence_L = is_last_BT.t().flatten(), sequence_BT.t().flatten()
    flat_LH = hidden_TBH.flatten(0, 1)
    if split:
        rank = parallel_state.get_tensor_model_parallel_rank()
        own = slice(rank * len(flat_LH), (rank + 1) * len(flat_LH))
        is_last_L, sequence_L = is_last_L[own], sequence_L[own]
    places = is_last_L.nonzero().flatten()
    zeros_SH = flat_LH.new_zeros(num_sequences, flat_LH.shape[1])
    return zeros_SH.index_copy(0, sequence_L[places], flat_LH[places])


def sum_of_parts(part: Tensor, *, split: bool) -> Tensor:
    """The sum over the ranks that hold parts of the same sequences, to be differentiated. Collective."""
    total = parallel.sum_of_context_parts(part)
    return parallel.sum_of_tensor_parts(total) if split else total
