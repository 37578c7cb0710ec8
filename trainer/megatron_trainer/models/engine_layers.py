"""Layers on top of TransformerEngine's; importable only where it is installed."""

from __future__ import annotations

from typing import Any

from megatron.core.extensions.transformer_engine import TEDotProductAttention, TERowParallelLinear
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor

from megatron_trainer.models.local_attention import CoreAttention


class LeftPaddedAttention(TEDotProductAttention):  # type: ignore[misc]  # megatron-core has no types
    """Attention with the mask of a batch that is padded on the left, combined with a sliding window if there is one.

    TransformerEngine's causal attention ignores the mask: right padding follows every real token, but left padding
    would be visible to all of them. An arbitrary mask type makes it choose a kernel that reads the mask.
    """

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


class WholeImageAttention(TEDotProductAttention):  # type: ignore[misc]  # megatron-core has no types
    """Attention in which tokens of images may see later ones (whole_images.py), for which TransformerEngine's kernels
    have no mask within a window: such rows take torch's, those without images TransformerEngine's.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:  # noqa: ANN401 - megatron's signature
        super().__init__(*args, **settings)
        self.of_images = CoreAttention(*args, **settings)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *args: Any,  # noqa: ANN401 - megatron's signature
        **kwargs: Any,  # noqa: ANN401
    ) -> Tensor:
        """As TEDotProductAttention. attention_mask: as of CoreAttention."""
        attend = super().forward if attention_mask is None else self.of_images
        attended: Tensor = attend(query, key, value, attention_mask, *args, **kwargs)
        return attended


class OwnOutputEngineLinear(TERowParallelLinear):  # type: ignore[misc]  # megatron-core has no types
    """A linear whose output shares memory with nothing: megatron-core's experts add their bias to it in place.

    TransformerEngine's output is a view made inside its function, and torch refuses to differentiate that.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(output, bias), as of the linear."""
        output, bias = super().forward(x)
        return output.clone(), bias
