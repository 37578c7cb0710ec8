"""What a model cannot do right under these arguments, found before anything is built.

Rules that need only arguments live in the contract; here are those that need the model.
"""

from __future__ import annotations

from collections.abc import Iterator

from megatron_trainer.models import overrides, rope
from megatron_trainer.models.activation import ACTIVATIONS
from megatron_trainer.models.family import Family, HfConfig
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.violation import Violation


def violations(family: Family, config: HfConfig, args: TrainArgs) -> list[Violation]:
    """Everything that stands against training this model in this layout."""
    settings = family.settings(config)
    found = list(family.refuse(config))
    found += overrides.contradictions(family, config, args, settings)
    found += rope.violations(config, args)
    found += _activation(config)
    found += _sequence_parallel(family, args, has_experts=bool(settings.get("num_moe_experts")))
    found += _heads(family, config, args)
    found += _experts(settings.get("num_moe_experts"), args)
    return found


def _activation(config: HfConfig) -> Iterator[Violation]:
    if config.hidden_act not in ACTIVATIONS:
        message = f"this activation is not supported; supported are {', '.join(ACTIVATIONS)}"
        yield Violation(path="config.json:hidden_act", value=config.hidden_act, message=message)


def _sequence_parallel(family: Family, args: TrainArgs, *, has_experts: bool) -> Iterator[Violation]:
    """Experts refuse to train without it; latent attention trains but doubles the gradient of its query norm."""
    if args.tensor_model_parallel_size == 1 or args.sequence_parallel:
        return
    reason = "a mixture of experts" if has_experts else "latent attention" if family.latent_attention else None
    if reason:
        message = f"{reason} with tensor_model_parallel_size > 1 needs sequence parallelism; set it to true"
        yield Violation(path="spec.args.sequence_parallel", value=False, message=message)


def _heads(family: Family, config: HfConfig, args: TrainArgs) -> Iterator[Violation]:
    size = args.tensor_model_parallel_size
    heads = config.num_attention_heads
    groups = heads if family.latent_attention else config.num_key_value_heads or heads
    if heads % groups:
        message = f"{heads} attention heads do not divide into {groups} groups; use a divisor of {heads}"
        yield Violation(path="config.json:num_key_value_heads", value=groups, message=message)
    if not getattr(config, "head_dim", None) and config.hidden_size % heads:
        message = f"a hidden size of {config.hidden_size} does not divide over {heads} heads; use a multiple of them"
        yield Violation(path="config.json:hidden_size", value=config.hidden_size, message=message)
    if heads % size:
        message = f"{heads} attention heads do not divide over {size} ranks; use a divisor of {heads}"
        yield Violation(path="spec.args.tensor_model_parallel_size", value=size, message=message)
    elif groups % size and size % groups:
        message = f"{groups} key-value heads neither divide over {size} ranks nor the ranks over them"
        yield Violation(path="spec.args.tensor_model_parallel_size", value=size, message=message)


def _experts(num_experts: int | None, args: TrainArgs) -> Iterator[Violation]:
    size = args.expert_model_parallel_size
    if num_experts is None and size > 1:
        message = "this model has no experts to spread; set it to 1"
        yield Violation(path="spec.args.expert_model_parallel_size", value=size, message=message)
    elif num_experts and num_experts % size:
        message = f"{num_experts} experts do not divide over {size} ranks; use a divisor of {num_experts}"
        yield Violation(path="spec.args.expert_model_parallel_size", value=size, message=message)
    if num_experts and args.pipeline_model_parallel_size > 1 and args.moe_token_dispatcher_type == "allgather":
        message = "pipeline stages send rows of varying length, which the allgather dispatcher cannot; use alltoall"
        yield Violation(path="spec.args.moe_token_dispatcher_type", value="allgather", message=message)
