"""A layer whose feed-forward block skips the padding of padded rows, for mlp_padding_free.

Shape suffixes: T tokens of a row, B rows, N real tokens of all rows, H hidden.
"""

from __future__ import annotations

from typing import Any

from megatron.core.transformer import TransformerLayer
from torch import Tensor


class PaddingFreeFeedForwardLayer(TransformerLayer):  # type: ignore[misc]  # megatron-core has no types
    """A transformer layer for padded rows; padding passes the block unchanged, and no token attends to it.

    Real tokens are found from the attention mask of the same call, so that recomputation finds the same ones.
    """

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:  # noqa: ANN401 - megatron's signature
        """Hidden states [T, B, H] and the context of cross attention."""
        hidden_TBH, context = self._forward_attention(*args, **kwargs)
        # The last token attends to every real one, and to itself even where it is padding, which does no harm.
        is_real_TB = ~kwargs["attention_mask"][:, 0, -1].transpose(0, 1)
        output_N1H = self._forward_mlp(hidden_TBH[is_real_TB].unsqueeze(1))
        return hidden_TBH.masked_scatter(is_real_TB.unsqueeze(-1), output_N1H), context
