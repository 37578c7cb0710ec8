"""Turns a loaded model into one that trains low-rank adapters: freezes weights, selects modules, attaches adapters.

Runs after the base weights are loaded and before the model is wrapped for data parallelism. Collective: all ranks reach
the same verdict, even if only one of them finds a problem.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType

import torch
from megatron.core import parallel_state
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.moe.router import Router

from megatron_trainer.lora import agree, select
from megatron_trainer.lora.adapter import Settings
from megatron_trainer.lora.attach import attach, train_biases_of_frozen_weights
from megatron_trainer.lora.embedding import EmbeddingAdapter
from megatron_trainer.lora.gated import fuse_activations
from megatron_trainer.lora.grouped import GroupedAdapter
from megatron_trainer.lora.layer import LinearAdapter
from megatron_trainer.lora.merge import keep_original
from megatron_trainer.lora.names import is_adapter, named_modules, named_parameters, unwrapped
from megatron_trainer.lora.parts import gets_no_adapter, is_frozen, part_of
from megatron_trainer.lora.placement import placement
from megatron_trainer.lora.recompute import let_gradients_through_embeddings
from megatron_trainer.lora.refuse import Wishes, refuse
from megatron_trainjob.args import head
from megatron_trainjob.args.head import TOWER
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.families.vision import is_tower

logger = logging.getLogger(__name__)


def settings(args: TrainArgs) -> Settings:
    """The settings of the run's adapters."""
    return Settings(
        rank=args.lora_rank,
        alpha=args.lora_alpha,
        dropout=args.lora_dropout,
        rank_stabilized=args.use_rslora,
        seed=args.seed,
    )


def add_adapters(
    chunks: list[torch.nn.Module],
    args: TrainArgs,
    *,
    keep_originals: bool = False,
    parts: Mapping[str, int] = MappingProxyType({}),
) -> int:
    """Adds adapters; returns their number on this rank. Freezes everything else except what args select for training.

    keep_originals: keep a copy of the weights that train in full, so that adapters_disabled can restore the original
    model (needed for a reference policy; costs their size in memory). parts: of the modules with several adapters side
    by side (adapter_modules.parts).

    Raises InvalidInput with every problem: names that match nothing, and unsupported layouts.
    """
    modules = dict(named_modules(chunks))
    kinds = {name: kind for name, module in modules.items() if (kind := select.kind(name, module))}
    chosen = select.targets(
        kinds, args.target_modules, args.target_regex, is_left_out=partial(gets_no_adapter, args=args)
    )
    saved = select.saved_modules(modules, head.modules_to_save(args))
    refuse(chunks, args, Wishes(kinds=kinds, modules=modules, adapted=chosen, saved=saved))
    _warn_of_a_language_model_without(agree.union(chosen.names | saved.names), modules, args)
    for message in notes_about_the_tower(kinds, args):
        logger.warning("%s", message)
    for _, parameter in named_parameters(chunks):
        parameter.requires_grad_(False)
    for name in sorted(chosen.names):
        numbers = replace(settings(args), parts=parts.get(name, 1))
        _adapt(name, modules[name], numbers, unwrapped(chunks[0]).config)
    fuse_activations(modules, chosen.names)
    _train_in_full(chunks, args, agree.union(saved.names), keep_originals=keep_originals)
    let_gradients_through_embeddings(chunks)
    _hold_routing_biases(chunks)
    logger.info("added adapters modules=%d rank=%d", len(chosen.names), args.lora_rank)
    return len(chosen.names)


def _warn_of_a_language_model_without(trained: frozenset[str], modules: Mapping[str, object], args: TrainArgs) -> None:
    """Warns if only the tower of a model with images trains, although the language model is not frozen."""
    if args.freeze_llm or any(part_of(name) == "llm" for name in trained if name != TOWER):
        return
    if any(map(is_tower, modules)):
        argument = "target_modules" if args.target_regex is None else "target_regex"
        logger.warning(
            "%s=%s matches modules of the vision tower only: the language model trains nothing; name its modules "
            "(linear_qkv, linear_proj, linear_fc1, linear_fc2) or set freeze_llm",
            argument,
            args.target_regex or ",".join(args.target_modules),
        )


def notes_about_the_tower(kinds: Mapping[str, select.Kind], args: TrainArgs) -> Iterator[str]:
    """A message for each of target_modules with a meaning in the tower that its user may not know of: names of Hugging
    Face that are fused with others in the language model, and names that frozen parts of the tower have as well.

    kinds: every adaptable module, with its kind.
    """
    for wish in () if args.freeze_llm or args.target_regex is not None else args.target_modules:
        meant = select.HUGGING_FACE_NAMES.get(wish)
        matches = [name for name in kinds if select.is_suffix(wish, name)]
        of_tower = [name for name in matches if is_tower(name)]
        if meant and of_tower and len(of_tower) == len(matches) and meant not in args.target_modules:
            yield f"target_modules: {wish} is a module of the vision tower alone; {meant} has it in the language model"
        if len(of_tower) < len(matches) and any(is_frozen(name, args) for name in of_tower):
            yield (
                f"target_modules: {wish} adapts modules of the vision tower too, frozen or not; "
                f"target_regex: decoder.*{wish} leaves them out"
            )


def _adapt(name: str, module: torch.nn.Module, numbers: Settings, config: TransformerConfig) -> None:
    num_local = getattr(module, "num_gemms", None)  # of TransformerEngine's grouped linear
    if num_local is not None:
        place = placement(name, module.get_parameter("weight0"), config)
        attach(module, GroupedAdapter(_grouped_names(name, num_local), place, numbers))
        return
    match select.kind(name, module):
        case "embedding":
            attach(module, EmbeddingAdapter(name, module, numbers))
        case "router":
            place = placement(name, module.get_parameter("weight"), config)
            attach(module, LinearAdapter(name, place, numbers), method="gating")
        case _:
            place = placement(name, module.get_parameter("weight"), config)
            attach(module, LinearAdapter(name, place, numbers))


def _grouped_names(name: str, num_local: int) -> list[str]:
    """Each local expert's own name: `...experts.linear_fc1` -> `...experts.local_experts.<n>.linear_fc1`."""
    owner, linear = name.rsplit(".", 1)
    first = parallel_state.get_expert_model_parallel_rank() * num_local
    return [f"{owner}.local_experts.{first + index}.{linear}" for index in range(num_local)]


def _train_in_full(
    chunks: list[torch.nn.Module], args: TrainArgs, saved: frozenset[str], *, keep_originals: bool
) -> None:
    for name, parameter in named_parameters(chunks):
        if not trains_in_full(name, saved, "none" if is_frozen(name, args) else args.lora_bias):
            continue
        parameter.requires_grad_(True)
        if keep_originals:
            keep_original(parameter)
    train_biases_of_frozen_weights(chunks)


def _hold_routing_biases(chunks: list[torch.nn.Module]) -> None:
    """Keeps experts' selection biases at the base model's values.

    Megatron updates them after each step regardless of freezing. They are neither adapters nor parameters, so an
    adapter trained with changing biases would find different ones wherever it is loaded.
    """
    for _, module in named_modules(chunks):
        if isinstance(module, Router):
            module.frozen_expert_bias = True


def trains_in_full(name: str, saved: frozenset[str], lora_bias: str) -> bool:
    """Whether a parameter of the base model trains: part of a module to save, or a bias with lora_bias=all."""
    if is_adapter(name):
        return False
    owner, own_name = name.rsplit(".", 1)
    is_saved = any(owner == module or owner.startswith(f"{module}.") for module in saved)
    return is_saved or (lora_bias == "all" and "bias" in own_name)
