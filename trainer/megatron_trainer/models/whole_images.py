"""Attention of image tokens to all of their image, in layers with a window (Gemma-4): what each token may see.

A causal token sees those up to itself; a token of an image those up to the last token of that image. This reaches
attention in place of its mask: as positions of these last tokens, int64 [B, S] of the whole row, or, where rows have
padding that a mask leaves out, as that mask with the later tokens of images in it.

Shape suffixes: B rows, S tokens of the whole row.
"""

from __future__ import annotations

import torch
from torch import Tensor


def last_seen(is_image_BS: Tensor, sequence_starts: Tensor | None) -> Tensor:
    """The last token that each may see. Tokens of images that follow each other without a text between are one image,
    as in transformers, but not across the sequences of a packed row.

        text image image | image image text
        0    2     2       4     4     5
    """
    position_BS = torch.arange(is_image_BS.shape[1], device=is_image_BS.device).expand_as(is_image_BS)
    goes_on_BS = is_image_BS & is_image_BS.roll(-1, dims=1)
    goes_on_BS[:, -1] = False
    if sequence_starts is not None:
        goes_on_BS[:, (sequence_starts[1:] - 1).long()] = False
    ends_BS = torch.where(goes_on_BS, is_image_BS.shape[1], position_BS)
    return ends_BS.flip(1).cummin(dim=1).values.flip(1)


def opened(forbidden_B1SS: Tensor, last_BS: Tensor) -> Tensor:
    """A mask (True where attention is forbidden) with the later tokens of images allowed."""
    position_S = torch.arange(last_BS.shape[1], device=last_BS.device)
    is_later_BSS = (position_S > position_S[:, None]) & (position_S <= last_BS[..., None])
    return forbidden_B1SS & ~is_later_BSS[:, None]


def closed(mask: Tensor | None) -> Tensor | None:
    """What stands in for the mask, for a layer in which every token sees those up to itself alone."""
    if mask is None or mask.dtype != torch.bool:
        return None
    return mask | torch.ones(mask.shape[-2:], dtype=torch.bool, device=mask.device).triu(1)
