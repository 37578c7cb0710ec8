"""Multi-token prediction (DeepSeek-V3, arXiv 2412.19437, section 2.2): layers that predict tokens after the next one.

Layer k combines the hidden state of a token, as layer k - 1 left it, with the embedding of the token k places further,
and predicts the token after that one. A position without such a token in its own sequence has no loss.

Shape suffixes: B batch (1 when rows are packed), T tokens of this rank, H hidden, V vocabulary columns of this rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.multi_token_prediction import MultiTokenPredictionLayer
from torch import Tensor

from megatron_trainer import parallel
from megatron_trainer.data.values import IGNORED, MicroBatch


class PredictionLayer(MultiTokenPredictionLayer):  # type: ignore[misc]  # megatron-core has no types
    """A multi-token-prediction layer that leaves the padding mask in place.

    megatron-core moves the padding mask along with the tokens, although the mask belongs to the hidden states, and
    under sequence parallelism by the bounds of whole sequences, although each rank has its part of the mask.
    """

    def _get_embeddings(self, *args: Any, padding_mask: Tensor | None = None, **settings: Any) -> tuple[Any, ...]:  # noqa: ANN401
        ids, positions, _, embedded, hidden = super()._get_embeddings(*args, padding_mask=None, **settings)
        return ids, positions, padding_mask, embedded, hidden


class PredictingModel(GPTModel):  # type: ignore[misc]  # megatron-core has no types
    """A decoder whose last stage may end in multi-token-prediction layers. Their losses are the output processor's.

    megatron-core computes them inside the model, from the logits of all tokens at once and without a mask for padded
    columns of the vocabulary. later_embedding: of their tokens, where it is not the decoder's own.
    """

    later_embedding: Callable[..., Tensor] | None = None

    def _postprocess(
        self,
        hidden_states: Tensor,
        *,
        output_processor: Callable[..., Any] | None = None,
        **given: Any,  # noqa: ANN401 - megatron's signature
    ) -> Any:  # noqa: ANN401 - a tensor, or what the processor gives
        if not self.mtp_process:
            return super()._postprocess(hidden_states, output_processor=output_processor, **given)
        names = ("input_ids", "position_ids", "attention_mask", "padding_mask", "packed_seq_params")
        rotary = ("rotary_pos_emb", "rotary_pos_cos", "rotary_pos_sin", "sequence_len_offset")
        states_TBH = self.mtp(
            hidden_states=hidden_states,
            embedding=self.later_embedding or self.embedding,
            **{name: given[name] for name in (*names, *rotary)},
        )
        last_TBH, *further = states_TBH.chunk(1 + self.config.mtp_num_layers)
        weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        if output_processor is None:
            logits_TBV, _ = self.output_layer(last_TBH, weight=weight)
            return logits_TBV.transpose(0, 1).contiguous()
        return output_processor(
            hidden_states=last_TBH, further=further, output_layer=self.output_layer, output_weight=weight
        )


def further_targets(whole: MicroBatch, distance: int) -> MicroBatch:
    """The whole row with the labels and their weights for a prediction `distance` tokens beyond the next one.

    They stay inside their sequence: the last `distance` positions of each have no loss.
    """
    labels_BT, weights_BT = torch.full_like(whole.labels_BT, IGNORED), torch.zeros_like(whole.loss_weight_BT)
    has_loss_BT = None if whole.has_loss_BT is None else np.zeros_like(whole.has_loss_BT)
    bounds = parallel.bounds(whole.cu_seqlens, whole.tokens_BT.shape[1])
    for start, end in zip(bounds[:-1], bounds[1:], strict=True):
        if end - start > distance:
            to, of = slice(start, end - distance), slice(start + distance, end)
            labels_BT[:, to] = whole.labels_BT[:, of]
            weights_BT[:, to] = whole.loss_weight_BT[:, of]
            if has_loss_BT is not None and whole.has_loss_BT is not None:
                has_loss_BT[:, to] = whole.has_loss_BT[:, of]
    return replace(whole, labels_BT=labels_BT, loss_weight_BT=weights_BT, has_loss_BT=has_loss_BT)
