"""Selects the parameters that train in full training: rules over whole-model parameter names, applied in a fixed order.

First freeze_llm, freeze_vit and freeze_aligner (parts), freeze_parameters_ratio, freeze_parameters (prefixes) and
freeze_parameters_regex (search) freeze, then trainable_parameters (prefixes) and trainable_parameters_regex (search)
unfreeze.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

import torch
from megatron.core import parallel_state

from megatron_trainer.failure import InvalidInput
from megatron_trainer.lora import agree
from megatron_trainer.lora.attach import train_biases_of_frozen_weights
from megatron_trainer.lora.names import canonical, named_parameters
from megatron_trainer.lora.parts import is_frozen
from megatron_trainer.lora.placement import is_expert
from megatron_trainer.lora.recompute import let_gradients_through_embeddings
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.violation import Violation

_EXPERTS = ".local_experts."
_NUMBER = re.compile(r"(?<=\.local_experts)\.\d+(?=\.)")
_CHOOSING = ("freeze_parameters_regex", "freeze_parameters", "trainable_parameters_regex", "trainable_parameters")


def freeze(chunks: list[torch.nn.Module], args: TrainArgs) -> int:
    """Freezes parameters; returns the number of parameter tensors that train on this rank. Collective.

    Raises InvalidInput for each prefix or expression that matches no parameter of the whole model, and if nothing would
    train.
    """
    parameters = list(named_parameters(chunks))
    names = [name for name, _ in parameters]
    _refuse_unmatched(names, args)
    sizes = {name: _whole_size(name, parameter) for name, parameter in parameters}
    frozen = frozen_names(sizes, args)
    if not agree.union(set(names) - frozen):
        message = "nothing is left to train; add trainable_parameters or freeze less"
        value = args.freeze_parameters_ratio
        raise InvalidInput((_violation("freeze_parameters_ratio", value, message),))
    _refuse_divided_experts(names, frozen, args)
    for name, parameter in parameters:
        parameter.requires_grad_(name not in frozen)
    train_biases_of_frozen_weights(chunks)
    let_gradients_through_embeddings(chunks)
    return len(set(names) - frozen)


def frozen_names(sizes: Mapping[str, int], args: TrainArgs) -> frozenset[str]:
    """The parameters that do not train. sizes: elements of each whole parameter by name, in model order."""
    frozen = _from_the_bottom(sizes, args.freeze_parameters_ratio)
    frozen |= {name for name in sizes if is_frozen(name, args)}
    frozen |= _chosen(sizes, args.freeze_parameters, args.freeze_parameters_regex)
    return frozenset(frozen - _chosen(sizes, args.trainable_parameters, args.trainable_parameters_regex))


def _from_the_bottom(sizes: Mapping[str, int], ratio: float) -> set[str]:
    """The first parameters, as many as fit completely into `ratio` of all elements; the experts of a layer are one."""
    limit = int(sum(sizes.values()) * ratio)
    total = 0
    frozen: set[str] = set()
    for _, group in groupby(sizes, _with_its_experts):
        names = list(group)
        total += sum(sizes[name] for name in names)
        if total > limit:
            break
        frozen.update(names)
    return frozen


def _with_its_experts(name: str) -> str:
    return canonical(name).partition(_EXPERTS)[0] if _is_routed(name) else name


def _is_routed(name: str) -> bool:
    """Whether it is one expert of many, also where TransformerEngine keeps them in one module."""
    return _EXPERTS in canonical(name)


def _chosen(names: Iterable[str], prefixes: Sequence[str], regex: str | None) -> set[str]:
    return {
        name for name in names if name.startswith(tuple(prefixes)) or (regex is not None and re.search(regex, name))
    }


def _whole_size(name: str, parameter: torch.nn.Parameter) -> int:
    """Elements over all ranks that share it, so that a ratio freezes the same parameters in every layout.

    An expert counts for those that other ranks hold in its place.
    """
    num_places = parallel_state.get_expert_model_parallel_world_size() if _is_routed(name) else 1
    if not getattr(parameter, "tensor_model_parallel", False):
        return parameter.numel() * num_places
    num_shares: int = (
        parallel_state.get_expert_tensor_parallel_world_size()
        if is_expert(name)
        else parallel_state.get_tensor_model_parallel_world_size()
    )
    return parameter.numel() * num_shares * num_places


def _refuse_divided_experts(names: Sequence[str], frozen: frozenset[str], args: TrainArgs) -> None:
    """A checkpoint of several ranks stacks the same weight of all experts of a layer, so that no part of it may lack
    its optimizer state; and where TransformerEngine keeps them in one module, all train or none, as the first does.
    """
    routed = [name for name in names if _is_routed(name)]
    in_one_module = any(canonical(name) != name for name in routed)
    if torch.distributed.get_world_size() == 1 and not in_one_module:
        return
    still = agree.union(_NUMBER.sub("", canonical(name)) for name in routed if name in frozen)
    trained = agree.union(_NUMBER.sub("", canonical(name)) for name in routed if name not in frozen)
    if divided := sorted(still & trained):
        argument = next((each for each in _CHOOSING if getattr(args, each)), _CHOOSING[0])
        message = (
            f"freezes {divided[0]} of some experts and trains that of others, which only one rank with experts in "
            "modules of their own can do; choose all experts of a layer or none"
        )
        raise InvalidInput((_violation(argument, getattr(args, argument), message),))


def _refuse_unmatched(names: list[str], args: TrainArgs) -> None:
    existing = agree.union(names)
    known = ", ".join(sorted({".".join(name.split(".")[:2]) for name in existing}))
    message = f"matches no parameter of this model; names begin with {known}"
    violations = []
    for argument in ("freeze_parameters", "trainable_parameters"):
        for prefix in getattr(args, argument):
            if not _chosen(existing, (prefix,), None):
                violations.append(_violation(argument, prefix, message))
        regex = getattr(args, f"{argument}_regex")
        if regex is not None and not _chosen(existing, (), regex):
            violations.append(_violation(f"{argument}_regex", regex, message))
    if violations:
        raise InvalidInput(tuple(violations))


def _violation(argument: str, value: object, message: str) -> Violation:
    return Violation(path=f"spec.args.{argument}", value=value, message=message)
