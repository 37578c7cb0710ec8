"""Gated delta nets: the layers of Qwen3-Next and Qwen3.5 that have a state of fixed size in place of keys and values.

megatron-core's own needs a GPU and a kernel package, and its path without one knows no packed rows. This one is plain
torch on every device. A sequence never sees the state or the convolution of another one in its row.

Shape suffixes: T tokens of the whole row, B batch (1 when packed), L tokens of a sequence, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group, make_sharded_tensors_for_checkpoint
from torch import Tensor

from megatron_trainer.megatron.marks import split_over_heads, sum_over_sequence
from megatron_trainer.models.delta_rule import gated_delta_rule
from megatron_trainer.models.local_attention import starts
from megatron_trainer.parallel import bounds
from megatron_trainjob.families.model import LinearAttention

_OWN = ("conv_weight", "A_log", "dt_bias")
FASTEST_DECAY = (0.01, 16.0)
"""Range of the decay of new models, per step of a token."""


@dataclass(frozen=True, kw_only=True)
class Linears:
    """Builders of the projections into and out of the layer."""

    column: Callable[..., torch.nn.Module]
    row: Callable[..., torch.nn.Module]


class GatedDeltaNet(MegatronModule):  # type: ignore[misc]  # megatron-core has no types
    """Stands where a layer has its attention. Tensor-parallel ranks share the heads."""

    def __init__(
        self,
        config: TransformerConfig,
        submodules: Linears,
        *,
        sizes: LinearAttention,
        pg_collection: ProcessGroupCollection,
        **_: object,
    ) -> None:
        super().__init__(config=config)
        self.sizes, self.group = sizes, pg_collection.tp
        share = self.group.size()
        self.key_heads, self.value_heads = sizes.key_heads // share, sizes.value_heads // share
        self.values = self.value_heads * sizes.value_size
        for name, rows in sizes.projections.items():
            setattr(self, name, self._column(submodules, rows))
        self.conv_weight = self._parameter(sizes.channels // share, 1, sizes.kernel)
        self.A_log = self._parameter(self.value_heads)
        self.dt_bias = self._parameter(self.value_heads)
        self.norm = GatedNorm(config, sizes.value_size)
        self.out_proj = submodules.row(
            sizes.value_width,
            config.hidden_size,
            config=config,
            init_method=config.output_layer_init_method,
            bias=False,
            input_is_parallel=True,
            skip_bias_add=True,
            is_expert=False,
            tp_comm_buffer_name="proj",
            tp_group=self.group,
        )
        if config.perform_initialization:
            self._initialize()

    def _column(self, submodules: Linears, rows: int) -> torch.nn.Module:
        return submodules.column(
            self.config.hidden_size,
            rows,
            config=self.config,
            init_method=self.config.init_method,
            gather_output=False,
            bias=False,
            skip_bias_add=False,
            is_expert=False,
            tp_comm_buffer_name="qkv",
            tp_group=self.group,
        )

    def _parameter(self, *shape: int) -> torch.nn.Parameter:
        made = torch.nn.Parameter(torch.empty(*shape, dtype=self.config.params_dtype))
        split_over_heads(made)
        return made

    @torch.no_grad()
    def _initialize(self) -> None:
        with get_cuda_rng_tracker().fork():
            self.config.init_method(self.conv_weight)
            self.A_log.uniform_(*FASTEST_DECAY).log_()
        self.dt_bias.fill_(1.0)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
        **_: Any,  # noqa: ANN401 - what only attention needs
    ) -> tuple[Tensor, Tensor | None]:
        """(output [T, B, hidden] like the input, bias None). attention_mask: as of attention; padding has no effect."""
        mixed_TBD, gate, strength, decay = self._projected(hidden_states)
        if attention_mask is not None and packed_seq_params is None:
            is_padding_TB1 = attention_mask[:, 0, -1].t()[..., None]  # what the last token may not see
            mixed_TBD = mixed_TBD.masked_fill(is_padding_TB1, 0.0)
            strength = strength.masked_fill(is_padding_TB1, 0.0)
        row = (mixed_TBD.transpose(0, 1), decay.transpose(0, 1), strength.transpose(0, 1))
        limits = bounds(starts(packed_seq_params), mixed_TBD.shape[0])
        outputs = [
            self._of_sequence(*(part[:, first:last] for part in row))
            for first, last in zip(limits[:-1], limits[1:], strict=True)
        ]
        whole_TBNV = torch.cat(outputs, dim=1).transpose(0, 1)
        found: tuple[Tensor, Tensor | None] = self.out_proj(self.norm(whole_TBNV, gate).flatten(2))
        return found

    def _projected(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys, values by key head [T, B, D]; output gate [T, B, N, V]; strength and log decay [T, B, N]."""
        project = self._separately if self.sizes.separate else self._by_key_head
        mixed, gate, strength, speed = project(hidden)
        return mixed, self._by_value_head(gate), strength.sigmoid(), self._log_decay(speed)

    def _separately(self, hidden: Tensor) -> tuple[Tensor, ...]:
        names = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")
        return tuple(getattr(self, name)(hidden)[0] for name in names)

    def _by_key_head(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """The rows of both projections are ordered by key head, each with the value heads that share it."""
        by_head = torch.unflatten(self.in_proj_qkvz(hidden)[0], -1, (self.key_heads, -1))
        width = self.values // self.key_heads
        mixed, gate = torch.split(by_head, [by_head.shape[-1] - width, width], dim=-1)
        strength, speed = torch.unflatten(self.in_proj_ba(hidden)[0], -1, (self.key_heads, -1)).chunk(2, dim=-1)
        return mixed.flatten(-2), gate.flatten(-2), strength.flatten(-2), speed.flatten(-2)

    def _by_value_head(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.value_heads, self.sizes.value_size))

    def _log_decay(self, speed_TBN: Tensor) -> Tensor:
        step = torch.nn.functional.softplus(speed_TBN.float() + self.dt_bias.float())
        return -self.A_log.float().exp() * step

    def _of_sequence(self, mixed_BLD: Tensor, decay_BLN: Tensor, strength_BLN: Tensor) -> Tensor:
        """[B, L, N, V]."""
        convolved = self.config.activation_func(self._convolved(mixed_BLD))
        by_head = torch.unflatten(convolved, -1, (self.key_heads, -1))
        size, shared = self.sizes.key_size, self.value_heads // self.key_heads
        query, key, value = torch.split(by_head, [size, size, by_head.shape[-1] - 2 * size], dim=-1)
        query, key = (part.repeat_interleave(shared, dim=2) for part in (query, key))
        return gated_delta_rule(query, key, self._by_value_head(value.flatten(-2)), decay_BLN, strength_BLN)

    def _convolved(self, mixed_BLD: Tensor) -> Tensor:
        """Each channel with itself at the tokens before, which are zero before the sequence."""
        padded_BDL = torch.nn.functional.pad(mixed_BLD.transpose(1, 2), (self.sizes.kernel - 1, 0))
        convolved = torch.nn.functional.conv1d(padded_BDL, self.conv_weight, groups=len(self.conv_weight))
        return convolved.transpose(1, 2)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Sequence[Any] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """For checkpoints of any layout: the heads' own parameters are split over tensor-parallel ranks."""
        metadata = ensure_metadata_has_dp_cp_group(metadata)
        found: dict[str, Any] = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        own = {name: getattr(self, name) for name in _OWN}
        groups = {"tp_group": self.group, "dp_cp_group": metadata["dp_cp_group"]}
        rows = dict.fromkeys(_OWN, 0)
        found |= make_sharded_tensors_for_checkpoint(own, prefix, rows, sharded_offsets, **groups)
        return found


class GatedNorm(torch.nn.Module):
    """The root-mean-square norm of each head's output, multiplied with its gate."""

    def __init__(self, config: TransformerConfig, size: int) -> None:
        super().__init__()
        self.eps = config.layernorm_epsilon
        self.weight = torch.nn.Parameter(torch.ones(size, dtype=config.params_dtype))
        sum_over_sequence(self.weight, is_summed=config.sequence_parallel)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """In the shape and type of x; both are [.., size]."""
        x32 = x.float()
        normed = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        scaled = self.weight * normed.to(x.dtype)
        return (scaled * torch.nn.functional.silu(gate.float())).to(x.dtype)
