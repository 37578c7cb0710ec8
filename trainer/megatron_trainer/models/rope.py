"""Rotary frequencies: taken from transformers' own initialization, so that every scaling type is the model's.

megatron-core hard-codes Llama 3's constants and YaRN's, and lacks some types.
"""

from __future__ import annotations

import functools
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from megatron.core.models.common.embeddings import rope_utils
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from torch.distributed import ProcessGroup
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from megatron_trainjob.families.gemma4 import PROPORTIONAL
from megatron_trainjob.families.model import Model
from megatron_trainjob.families.vision import Vision


def frequencies(model: Model, hf_config: Any) -> tuple[torch.Tensor, float]:  # noqa: ANN401 - differs by family
    """(inverse frequencies, float32[rotated channels / 2]; the factor on cosine and sine).

    hf_config: the model's transformers configuration.
    """
    if model.wide is not None:  # side by side: each layer takes its own
        kinds = [frequencies(each, hf_config)[0] for each in (replace(model, wide=None), _wide(model))]
        return torch.cat(kinds), 1.0
    kind = model.rotary.kind
    if kind == PROPORTIONAL:
        return _proportional(model), 1.0
    if kind == "default":
        return _unscaled(model), 1.0
    config = copy(hf_config)
    if getattr(config, "head_dim", 0) is None:  # some RoPE types use it directly and cannot take None
        config.head_dim = model.qk_head_size
    inverse, factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    return inverse.float(), float(factor)


def _unscaled(model: Model) -> torch.Tensor:
    head = model.qk_rope_size or model.qk_head_size
    rotated = int(head * model.rotary.share)
    exponents = torch.arange(0, rotated, 2, dtype=torch.float32, device="cpu") / rotated
    return torch.as_tensor(1.0 / model.rotary.base**exponents)


def _wide(model: Model) -> Model:
    """The model with the attention of its wide layers in all of them; as it is without such a layer."""
    assert model.wide is not None  # its caller has looked
    return model.at(model.wide.layers.index(True))


def _proportional(model: Model) -> torch.Tensor:
    """The frequencies of whole heads, of which only the first share is not zero."""
    head, rotary = model.qk_head_size, model.rotary
    rotated = int(rotary.share * head // 2)
    exponents = torch.arange(0, 2 * rotated, 2, dtype=torch.float32, device="cpu") / head
    inverse = torch.zeros(head // 2, device="cpu")
    inverse[:rotated] = 1.0 / rotary.base**exponents
    return torch.as_tensor(inverse / rotary.parameters.get("factor", 1.0))


@functools.cache  # once, however many models are built
def install() -> None:
    """Rotates a packed row by the angles of all its tokens at once.

    megatron-core does so sequence by sequence, and for each asks the card where it starts; the angles of two sequences
    after one another are those of the row.
    """
    by_sequence = rope_utils._apply_rotary_pos_emb_thd

    def rotated(
        t: torch.Tensor,
        cu_seqlens: torch.Tensor,
        freqs: torch.Tensor,
        *,
        cp_group: ProcessGroup,
        **settings: Any,  # noqa: ANN401 - megatron's signature
    ) -> torch.Tensor:
        if cp_group.size() > 1 or len(freqs) != len(t):
            result: torch.Tensor = by_sequence(t, cu_seqlens, freqs, cp_group=cp_group, **settings)
        else:
            result = rope_utils._apply_rotary_pos_emb_bshd(t[:, None], freqs, **settings)[:, 0]
        return result

    rope_utils._apply_rotary_pos_emb_thd = rotated


class ScaledRotaryEmbedding(RotaryEmbedding):  # type: ignore[misc]  # megatron-core has no types
    """Fixed frequencies and a factor on cosine and sine, with the interface that latent attention expects of YaRN."""

    inv_freq: torch.Tensor

    def __init__(self, model: Model, inverse: torch.Tensor, factor: float, cp_group: ProcessGroup) -> None:
        super().__init__(model.qk_rope_size, rotary_percent=1.0, rotary_base=model.rotary.base, cp_group=cp_group)
        self.inv_freq = inverse.to(self.inv_freq.device)
        self.factor = factor

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, float]:  # noqa: ANN401 - megatron's signature
        """(angles [tokens, 1, 1, channels], the factor)."""
        return super().forward(*args, **kwargs), self.factor


class SectionedRotaryEmbedding(torch.nn.Module):
    """Angles by time, row and column: each pair of channels of a head rotates by one of the three.

    Takes the place of megatron-core's MultimodalRotaryEmbedding, which does not support interleaved sections and would
    slice packed rows for context ranks, although attention needs them whole.
    """

    inv_freq: torch.Tensor

    def __init__(self, inverse: torch.Tensor, vision: Vision, *, interleaved: bool = False) -> None:
        super().__init__()
        self.interleaved = interleaved
        self.inv_freq = inverse
        self.axis = _axes(vision, len(inverse))

    def forward(self, position_ids_3BT: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        """Angles [T, B, 1, 2 x pairs], float32."""
        pairs = torch.arange(len(self.axis), device=position_ids_3BT.device)
        axis = self.axis.to(position_ids_3BT.device)
        angles_3BTP = position_ids_3BT.float()[..., None] * self.inv_freq.to(position_ids_3BT.device)
        angles_TB1P = angles_3BTP[axis, :, :, pairs].permute(2, 1, 0)[:, :, None]
        if self.interleaved:  # neighboring channels are a pair
            return angles_TB1P.repeat_interleave(2, dim=-1)
        return torch.cat((angles_TB1P, angles_TB1P), dim=-1)


def _axes(vision: Vision, num_pairs: int) -> torch.Tensor:
    """Which of time, row and column each pair of channels rotates by, int64 [pairs].

    Sections of 2, 3 and 3: 0 0 1 1 1 2 2 2; interleaved: 0 1 2 0 1 2 1 2, time where the others have run out.
    """
    if not vision.interleaves_sections:
        return torch.arange(3).repeat_interleave(torch.tensor(vision.sections))
    axes = torch.zeros(num_pairs, dtype=torch.int64)
    for axis in (1, 2):
        axes[axis : 3 * vision.sections[axis] : 3] = axis
    return axes
