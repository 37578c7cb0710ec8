"""megatron-core's expert router: corrects token counts in padded rows, and routes as each family does.

Shape suffixes: T tokens, E experts, K experts of a token, G groups of experts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer.moe import moe_utils, router

from megatron_trainjob.families.model import Model, Router

Route = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def count_tokens(
    routing_map: torch.Tensor,
    reduce_group: dist.ProcessGroup,
    topk: int = 1,
    with_padding_mask: bool = False,  # noqa: FBT001 - megatron-core's signature
) -> tuple[torch.Tensor, torch.Tensor | int, torch.Tensor | int]:
    """Tokens of each expert over the group, tokens of this rank, tokens of the group. Padding is routed to no expert.

    megatron-core 0.19 sums the rank's own counts in place and uses the group's number of tokens as the rank's, which
    makes balancing losses of padded rows too large by a factor of the group size.
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
    """Adds the tokens of each expert to the counts that update the expert bias. padding_mask: bool [tokens].

    megatron-core 0.19 applies the mask along the wrong dimension, that of experts.
    """
    if not self.enable_expert_bias or not torch.is_grad_enabled():
        return
    with torch.no_grad():
        counted = routing_map if padding_mask is None else routing_map & ~padding_mask[:, None]
        self.local_tokens_per_expert += counted.sum(dim=0)


def z_loss(logits_TE: torch.Tensor, coefficient: float, padding_mask: torch.Tensor | None = None) -> torch.Tensor:
    """This rank's part of the z-loss: the mean is over the real tokens of all ranks that hold parts of the rows.

    megatron-core 0.19 takes the mean of the ranks' means (its coefficient is divided by their number): where padding is
    on one of them, the tokens of that rank count for more, and the loss depends on how a row is split.
    """
    share: torch.Tensor = moe_utils.z_loss_func(logits_TE, coefficient, padding_mask=padding_mask)
    group = parallel_state.get_tensor_and_context_parallel_group()
    if padding_mask is None or group.size() == 1:
        return share
    own = (~padding_mask).sum()
    everyones = own.clone()
    dist.all_reduce(everyones, group=group)
    weight: torch.Tensor = own * group.size() / everyones.clamp(min=1)
    return share * weight


def differs(model: Model) -> bool:
    """Whether megatron-core would route differently from this model.

    It always normalizes sigmoid scores, but never the score of a single expert, and ranks groups by the sum of as many
    of their best scores as experts are chosen per group.
    """
    rule = model.router
    if rule is None:
        return False
    ranks_otherwise = rule.num_groups > 0 and model.experts_per_token // rule.num_chosen_groups != rule.group_best
    has_one = model.experts_per_token == 1
    weighs_otherwise = rule.normalized if has_one else rule.score == "sigmoid" and not rule.normalized
    return ranks_otherwise or weighs_otherwise


def route_by(rule: Router) -> Route:
    """A replacement of megatron-core's topk_routing_with_score_function for one family's routing."""

    def route(
        logits_TE: torch.Tensor,
        topk: int,
        *,
        scaling_factor: float | None = None,
        expert_bias: torch.Tensor | None = None,
        **_: object,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        scores_TE = logits_TE.float().softmax(-1) if rule.score == "softmax" else logits_TE.float().sigmoid()
        choice_TE = scores_TE if expert_bias is None else scores_TE + expert_bias.float()
        if rule.num_groups:
            choice_TE = _within_best_groups(choice_TE, rule)
        chosen_TK = choice_TE.topk(topk, dim=-1).indices
        weights_TK = scores_TE.gather(1, chosen_TK)
        if rule.normalized:
            weights_TK = weights_TK / (weights_TK.sum(dim=-1, keepdim=True) + 1e-20)
        weights_TK = (weights_TK * (scaling_factor or 1.0)).type_as(logits_TE)
        where = (torch.arange(len(logits_TE), device=logits_TE.device).unsqueeze(1), chosen_TK)
        probabilities_TE = torch.zeros_like(logits_TE).index_put(where, weights_TK)
        is_chosen_TE = torch.zeros_like(logits_TE, dtype=torch.bool)
        is_chosen_TE[where] = True
        return probabilities_TE, is_chosen_TE

    return route


def _within_best_groups(choice_TE: torch.Tensor, rule: Router) -> torch.Tensor:
    """The scores, with experts outside the best groups masked."""
    grouped_TGE = torch.unflatten(choice_TE, -1, (rule.num_groups, -1))
    rank_TG = grouped_TGE.topk(rule.group_best, dim=-1).values.sum(-1)
    best = rank_TG.topk(rule.num_chosen_groups, dim=-1).indices
    is_out_TG = torch.ones_like(rank_TG, dtype=torch.bool).scatter(1, best, False)
    return grouped_TGE.masked_fill(is_out_TG.unsqueeze(-1), float("-inf")).flatten(-2)


def install(model: Model, *, sums_tokens: bool) -> None:
    """Replaces megatron-core's functions in the modules of the routers, which imported them by value.

    sums_tokens: losses are sums over tokens (calculate_per_token_loss), for which a rank's mean is multiplied by its
    own number of tokens again.

    The routing applies to every router of the process: there is only one model, and copies of it.
    """
    router.get_tokens_per_expert_and_token_count = count_tokens
    router.TopKRouter._apply_expert_bias = count_for_bias
    router.z_loss_func = moe_utils.z_loss_func if sums_tokens else z_loss
    router.topk_routing_with_score_function = moe_utils.topk_routing_with_score_function
    if model.router is not None and differs(model):
        router.topk_routing_with_score_function = route_by(model.router)
