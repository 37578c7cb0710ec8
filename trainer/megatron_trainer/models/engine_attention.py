"""TransformerEngine's attention for rows that are padded on the left.

Under causal attention it ignores the mask: right padding follows every real token, but left padding would be visible to
all of them. An arbitrary mask type makes it choose a kernel that reads the mask.
"""

from __future__ import annotations

from typing import Any

from megatron.core.extensions.transformer_engine import TEDotProductAttention
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor


class LeftPaddedAttention(TEDotProductAttention):  # type: ignore[misc]  # megatron-core has no types
    """Attention with the mask of a padded batch, combined with a sliding window if there is one."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType,
        *args: Any,  # noqa: ANN401 - megatron's signature
        **kwargs: Any,  # noqa: ANN401
    ) -> Tensor:
        """As TEDotProductAttention. attention_mask: bool [B, 1, T, T], True where attention is forbidden."""
        kind = attn_mask_type if attention_mask is None else AttnMaskType.arbitrary
        attended: Tensor = super().forward(query, key, value, attention_mask, kind, *args, **kwargs)
        return attended
