"""Cross entropy from the last hidden states: output layer, loss and their gradients, a few tokens at a time.

The logits of all tokens are the largest tensor of a training run with a large vocabulary: 2.5 GB in bfloat16 for 8,192
tokens of Qwen2.5, and twice that for their softmax. Here they exist for one chunk of tokens at a time; its gradients
are computed at once, so that the backward pass recomputes nothing and only scales them. Most tokens without a
loss are left out (loss_tokens.py).

Shape suffixes: T tokens of this rank, B rows, L = T x B of this rank's part of the sequence, M of these that take part,
P parts of the sequence, N tokens of a chunk, H hidden, V vocabulary columns of this rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from megatron_trainer.losses import token
from megatron_trainer.models.logits import is_capped, mask_padded_columns
from megatron_trainer.models.loss_tokens import LossTokens, loss_tokens
from megatron_trainer.models.spec import ModelSpec
from megatron_trainjob.memory.activation import FLOAT32_BYTES
from megatron_trainjob.memory.estimate import LOGITS_AT_ONCE


@dataclass(frozen=True, kw_only=True)
class LinearCrossEntropy:
    """An output_processor for Megatron's models: called with the last hidden states instead of computing logits.

    labels_BT: -100 where there is none. weights_BT: float32, 0 where a token carries no loss.
    has_loss_BT: on the host, where weights are not 0; None if it does not know, then all tokens take part.
    cross_entropy: (logits [N, 1, V], labels [N, 1]) -> losses [N, 1] in nats, over all tensor-parallel ranks.
    objective: maps token losses to the trained objective; the losses themselves for ordinary training.
    """

    spec: ModelSpec
    labels_BT: Tensor
    weights_BT: Tensor
    cross_entropy: Callable[[Tensor, Tensor], Tensor]
    objective: Callable[[Tensor], Tensor] = torch.Tensor.float
    has_loss_BT: NDArray[np.bool_] | None = None

    def __call__(
        self, *, hidden_states: Tensor, output_layer: nn.Module, output_weight: Tensor | None, **_: object
    ) -> tuple[Tensor, Tensor]:
        """(sum of the weighted objectives, which has the gradient; objectives [B, T] without one), float32.

        Of tokens that carry no loss objectives are undefined: 0 where no logits were computed.
        hidden_states: [T, B, H], under sequence parallelism this rank's part of T.
        """
        candidates = [*output_layer.parameters(), *([] if output_weight is None else [output_weight])]
        # Each once: on the last stage of a pipeline a tied weight is the output layer's own.
        trained = [parameter for parameter in dict.fromkeys(candidates) if parameter.requires_grad]
        loss_sum, objectives_L = _Function.apply(self, output_layer, output_weight, hidden_states, *trained)
        return loss_sum, objectives_L.view(self.labels_BT.t().shape).t()

    def tokens(self, num_parts: int) -> LossTokens:
        """Those of which logits are computed. num_parts: over how many ranks the sequence is split."""
        own = parallel_state.get_tensor_model_parallel_rank() if num_parts > 1 else 0
        return loss_tokens(self.labels_BT, self.weights_BT, self.has_loss_BT, num_parts=num_parts, own=own)

    def at_once(self, num_parts: int) -> int:
        """Tokens of each part in a chunk."""
        width: int = self.spec.padded_vocab_size // parallel_state.get_tensor_model_parallel_world_size()
        return max(LOGITS_AT_ONCE // width // num_parts, 1)


class _Function(torch.autograd.Function):
    """Computes gradients in the forward pass, for a gradient of 1 on the sum, and scales them in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's signature
        losses: LinearCrossEntropy,
        output_layer: nn.Module,
        output_weight: Tensor | None,
        hidden_TBH: Tensor,
        *trained: Tensor,
    ) -> tuple[Tensor, Tensor]:
        flat_LH = hidden_TBH.flatten(0, 1)
        is_split = bool(output_layer.sequence_parallel)
        num_parts = parallel_state.get_tensor_model_parallel_world_size() if is_split else 1
        tokens = losses.tokens(num_parts)
        chunks = list(tokens.chunks(losses.at_once(num_parts)))
        wanted = _Gradients(hidden_TBH, trained, tokens) if any(ctx.needs_input_grad) else None
        loss_sum = hidden_TBH.new_zeros((), dtype=torch.float32)
        objectives_PM = torch.empty_like(tokens.weights_PM, dtype=torch.float32)
        is_alone = wanted is not None and num_parts == 1 and len(chunks) > 1
        num_tokens = tokens.weights_PM.shape[1]
        alone = _alone(output_layer, output_weight, trained, flat_LH, num_tokens) if is_alone else None
        weight = output_weight if alone is None else alone.weight_VH
        for some, labels_N, weights_N in chunks:
            with torch.set_grad_enabled(wanted is not None):
                hidden_N1H = flat_LH[tokens.places(some)][:, None].detach().requires_grad_(wanted is not None)
                logits_N1V, _ = output_layer(hidden_N1H, weight=weight)
                masked_N1V = mask_padded_columns(logits_N1V, losses.spec)
                labels_N1 = labels_N.clamp(min=0)[:, None]
                objective_N = losses.objective(losses.cross_entropy(masked_N1V, labels_N1)[:, 0])
                chunk_sum = token.weighted_sum(objective_N, weights_N)
            if alone is not None and wanted is not None:
                of_hidden_N1H, of_logits_N1V = torch.autograd.grad(chunk_sum, [hidden_N1H, logits_N1V])
                wanted.add(some, [of_hidden_N1H])
                if alone.of_logits_MV is None:
                    wanted.add_product(of_logits_N1V[:, 0], hidden_N1H.detach()[:, 0])
                else:
                    alone.of_logits_MV[some] = of_logits_N1V[:, 0]
            elif wanted is not None:
                wanted.add(some, torch.autograd.grad(chunk_sum, [hidden_N1H, *trained]))
            loss_sum += chunk_sum.detach()
            objectives_PM[:, some] = objective_N.detach().view(num_parts, -1)
        if alone is not None and alone.of_logits_MV is not None and wanted is not None:
            wanted.add_parameters([alone.of_logits_MV.t() @ tokens.of(flat_LH)])
        objectives_L = tokens.spread(objectives_PM)
        ctx.gradients = wanted
        ctx.mark_non_differentiable(objectives_L)
        return loss_sum, objectives_L

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_sum: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        gradients = ctx.gradients.scaled(of_sum)
        ctx.gradients = None
        return None, None, None, *gradients


@dataclass(frozen=True, kw_only=True)
class _Alone:
    """The output layer's weight, if it alone trains: its gradient follows from that of the logits.

    weight_VH: the same weight without a gradient, for which the chunks compute none. of_logits_MV: the gradient of all
    logits, for one product at the end; None where the sum of the chunks' products, in float32, takes less memory.
    """

    weight_VH: Tensor
    of_logits_MV: Tensor | None


def _alone(
    output_layer: nn.Module,
    output_weight: Tensor | None,
    trained: Sequence[Tensor],
    hidden_LH: Tensor,
    num_tokens: int,
) -> _Alone | None:
    """None where more than the weight trains, or where there is no product of chunks that sums in float32.

    Nor where logits are no product with the weight, nor in float16, in which the sum over all tokens, not yet divided
    by their number, may exceed the largest number. num_tokens: those that take part.
    """
    if hidden_LH.dtype == torch.float16 or is_capped(output_layer):
        return None
    weight = getattr(output_layer, "weight", None) if output_weight is None else output_weight
    is_smaller = num_tokens * hidden_LH.element_size() <= hidden_LH.shape[1] * FLOAT32_BYTES
    if not isinstance(weight, Tensor) or [id(each) for each in trained] != [id(weight)]:
        return None
    if is_smaller:
        return _Alone(weight_VH=weight.detach(), of_logits_MV=hidden_LH.new_empty(num_tokens, len(weight)))
    sums_in_product = hidden_LH.is_cuda and hidden_LH.dtype == torch.bfloat16
    return _Alone(weight_VH=weight.detach(), of_logits_MV=None) if sums_in_product else None


class _Gradients:
    """Sums of the chunks' gradients. Those of parameters are in float32, since each chunk adds to all elements."""

    def __init__(self, hidden_TBH: Tensor, trained: Sequence[Tensor], tokens: LossTokens) -> None:
        make = torch.empty_like if tokens.places_PM is None else torch.zeros_like
        self._hidden_TBH = make(hidden_TBH, memory_format=torch.contiguous_format)  # add() writes views
        self._tokens = tokens
        self._types = [parameter.dtype for parameter in trained]
        self._sums: list[Tensor] = []

    def add(self, some: slice, gradients: Sequence[Tensor]) -> None:
        """Adds the gradients of one chunk of the tokens: of its hidden states [N, 1, H], then of the parameters."""
        of_hidden_N1H, *of_parameters = gradients
        self._hidden_TBH.flatten(0, 1)[self._tokens.places(some)] = of_hidden_N1H[:, 0]
        if of_parameters:
            self.add_parameters(of_parameters)

    def add_product(self, of_logits_NV: Tensor, hidden_NH: Tensor) -> None:
        """Adds the gradient of the output layer's weight, in one kernel with the product of 16-bit matrices."""
        if not self._sums:
            sizes = (of_logits_NV.shape[1], hidden_NH.shape[1])
            self._sums = [torch.zeros(sizes, dtype=torch.float32, device=hidden_NH.device)]
        (total,) = self._sums
        torch.addmm(total, of_logits_NV.t(), hidden_NH, out_dtype=torch.float32, out=total)

    def add_parameters(self, of_parameters: Sequence[Tensor]) -> None:
        """Adds gradients of the parameters."""
        if self._sums:
            self._sums = [total.float().add_(part) for total, part in zip(self._sums, of_parameters, strict=True)]
        else:
            self._sums = list(of_parameters)

    def scaled(self, factor: Tensor) -> list[Tensor]:
        """Gradients of hidden states and parameters, for this gradient of the sum. Scales in place."""
        sums = (total.mul_(factor).to(dtype) for total, dtype in zip(self._sums, self._types, strict=True))
        return [self._hidden_TBH.mul_(factor), *sums]
