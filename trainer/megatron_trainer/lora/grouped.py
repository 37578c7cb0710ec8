"""The adapters of a grouped linear: one weight per local expert, all tokens in one call, sorted by expert."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group

from megatron_trainer.lora.adapter import Adapter, Offsets, Pair, Settings
from megatron_trainer.lora.layer import dropout_generator, kaiming_uniform, mark, share_of_A
from megatron_trainer.lora.placement import Placement
from megatron_trainer.lora.sharding import sharded_pair


class GroupedAdapter(Adapter):
    """A0.. [r, I] and B0.. [O, r], numbered like the weights of the grouped linear (weight0, weight1, ...)."""

    def __init__(self, names: list[str], place: Placement, settings: Settings) -> None:
        """`names`: the whole-model name of each local expert's linear, as if experts were not grouped."""
        super().__init__()
        self.num_experts = len(names)
        self.place = place
        self.group = place.group
        self.settings = settings
        for index, name in enumerate(names):
            first = share_of_A(kaiming_uniform(name, place.in_features, settings), place)
            a = torch.nn.Parameter(first)
            b = torch.nn.Parameter(first.new_zeros(place.out_features, settings.width))
            mark(a, b, place)
            self.register_parameter(f"A{index}", a)
            self.register_parameter(f"B{index}", b)

    def pair(self, index: int) -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
        """A and B of one local expert."""
        return self.get_parameter(f"A{index}"), self.get_parameter(f"B{index}")

    def forward(self, x: torch.Tensor, tokens_per_expert: list[int] | torch.Tensor) -> torch.Tensor:
        """The adapters' term. x: [tokens, I], the first tokens_per_expert[0] rows for expert 0, and so on."""
        counts = tokens_per_expert.tolist() if isinstance(tokens_per_expert, torch.Tensor) else tokens_per_expert
        parts = torch.split(self._dropped(x), counts)
        return torch.cat([self._one(part, *self.pair(index)) for index, part in enumerate(parts)])

    def pairs(self, base: torch.nn.Module) -> Iterator[Pair]:
        """Each local expert's weight and its A and B."""
        for index in range(self.num_experts):
            a, b = self.pair(index)
            yield Pair(weight=base.get_parameter(f"weight{index}"), a=a, b=b)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Offsets = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The same sharded keys as ungrouped experts, so either can load the other's checkpoint."""
        metadata = ensure_metadata_has_dp_cp_group(metadata)
        first = parallel_state.get_expert_model_parallel_rank() * self.num_experts
        total = parallel_state.get_expert_model_parallel_world_size() * self.num_experts
        entries: dict[str, Any] = {}
        for index in range(self.num_experts):
            offsets = (*sharded_offsets, (len(sharded_offsets), first + index, total))
            pair = sharded_pair(*self.pair(index), self.place, prefix, offsets, metadata)
            for letter in "AB":
                entry = pair[f"{prefix}{letter}"]
                entry.replica_id = (*entry.replica_id[:2], parallel_state.get_expert_data_parallel_rank())
                entries[f"{prefix}{letter}{index}"] = entry
        return entries

    def _one(self, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(torch.nn.functional.linear(x, a) * self.settings.scale, b)

    def _dropped(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.settings.dropout == 0:
            return x
        with dropout_generator(self.place):
            return torch.nn.functional.dropout(x, self.settings.dropout)
