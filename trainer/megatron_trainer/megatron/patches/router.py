"""megatron-core's router of experts, with its counts of tokens in padded rows corrected."""

from __future__ import annotations

import torch
import torch.distributed as dist
from megatron.core.transformer.moe import router


def count_tokens(
    routing_map: torch.Tensor,
    reduce_group: dist.ProcessGroup,
    topk: int = 1,
    with_padding_mask: bool = False,  # noqa: FBT001 - megatron-core's signature
) -> tuple[torch.Tensor, torch.Tensor | int, torch.Tensor | int]:
    """Tokens of each expert over the group, tokens of this rank, tokens of the group. Padding is routed to no expert.

    megatron-core 0.19 sums the rank's own counts in place and takes the group's number of tokens for the rank's, which
    makes balancing losses of padded rows too strong by the size of the group.
    """
    own = routing_map.sum(dim=0)
    everyones = own.clone()
    if reduce_group.size() > 1:
        dist.all_reduce(everyones, group=reduce_group)
    if with_padding_mask:
        return everyones, own.sum() / topk, everyones.sum() / topk
    return everyones, routing_map.shape[0], routing_map.shape[0] * reduce_group.size()


def count_for_bias(
    self: router.TopKRouter, routing_map: torch.Tensor, padding_mask: torch.Tensor | None = None
) -> None:
    """Adds the tokens of each expert to what the expert bias is updated by. padding_mask: bool [tokens].

    megatron-core 0.19 applies the mask along the experts.
    """
    if not self.enable_expert_bias or not torch.is_grad_enabled():
        return
    with torch.no_grad():
        counted = routing_map if padding_mask is None else routing_map & ~padding_mask[:, None]
        self.local_tokens_per_expert += counted.sum(dim=0)


def install() -> None:
    """Puts both in place of megatron-core's; the first where routers look it up, who imported it by value."""
    router.get_tokens_per_expert_and_token_count = count_tokens
    router.TopKRouter._apply_expert_bias = count_for_bias
