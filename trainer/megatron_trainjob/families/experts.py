"""Mixtures of experts shared by families: which layers have them, and routing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megatron_trainjob.families.config import Config
from megatron_trainjob.families.family import refused
from megatron_trainjob.families.model import Router
from megatron_trainjob.violation import Violation


def routed(config: Config, router: Router, layers: tuple[bool, ...], *, num_experts: str, width: str) -> dict[str, Any]:
    """Routed experts in `layers`; the keys of their number and width differ. {} when every layer is dense."""
    if not any(layers):
        return {}
    return {
        "expert_layers": layers,
        "num_experts": config[num_experts] or 0,
        "experts_per_token": config["num_experts_per_tok"] or 0,
        "expert_width": config[width],
        "router": router,
    }


def every_nth_layer(config: Config) -> tuple[bool, ...]:
    """Qwen's arrangement: every decoder_sparse_step-th layer, except those in mlp_only_layers."""
    step, dense = config["decoder_sparse_step"], config["mlp_only_layers"] or ()
    number = config["num_hidden_layers"]
    return tuple(step > 0 and (layer + 1) % step == 0 and layer not in dense for layer in range(number))


def after_dense_layers(config: Config) -> tuple[bool, ...]:
    """DeepSeek's arrangement: some dense layers first."""
    return tuple(layer >= (config["first_k_dense_replace"] or 0) for layer in range(config["num_hidden_layers"]))


def shared_and_routed(config: Config, router: Router, layers: tuple[bool, ...]) -> dict[str, Any]:
    """DeepSeek's experts: routed ones, and shared ones for every token."""
    found = routed(config, router, layers, num_experts="n_routed_experts", width="moe_intermediate_size")
    if not found:
        return {}
    return {**found, "shared_expert_width": config["moe_intermediate_size"] * (config["n_shared_experts"] or 0)}


def softmax_router(*, normalized: bool) -> Router:
    """Softmax scores; the selected ones are divided by their sum if `normalized`."""
    return Router(score="softmax", normalized=bool(normalized))


def sigmoid_router(config: Config) -> Router:
    """DeepSeek-V3's routing: sigmoid scores, a bias used only for selection, the best groups of experts first."""
    return Router(
        score="sigmoid",
        normalized=bool(config["norm_topk_prob"]),
        has_bias=True,
        scale=config["routed_scaling_factor"],
        balancing="seq_aux_loss",
        **best_groups(config),
    )


def best_groups(config: Config) -> dict[str, Any]:
    """The groups of experts to which routing is limited; {} if all may be selected."""
    groups, chosen = config["n_group"] or 1, config["topk_group"] or 1
    return {"num_groups": groups, "num_chosen_groups": chosen} if chosen < groups else {}


def refuse_groups(config: Config, *, ranked_by: int = 2) -> Iterator[Violation]:
    """Refuses groups of unequal size, or too small for a token or for their ranking; transformers fails on them.

    ranked_by: number of its best scores that determine the rank of a group.
    """
    experts, wanted = config["n_routed_experts"] or 0, config["num_experts_per_tok"] or 0
    number, chosen = config["n_group"] or 1, config["topk_group"] or 1
    if not experts:
        return
    size = experts // number
    if experts % number:
        yield refused("n_group", number, f"{experts} experts are not divisible into so many groups")
    elif size < ranked_by:
        message = (
            f"groups of {size} experts are too small, because each is ranked by its {ranked_by} best; use fewer groups"
        )
        yield refused("n_group", number, message)
    elif not 1 <= chosen <= number:
        yield refused("topk_group", chosen, f"must be from 1 to the {number} groups of experts")
    elif wanted > size * chosen:
        message = f"{chosen} groups hold {size * chosen} experts, and a token goes to {wanted}"
        yield refused("topk_group", chosen, message)
