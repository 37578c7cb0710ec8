"""Refuses what LoRA does not support, before anything is changed; every rank reaches the same verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from megatron.core import parallel_state
from megatron.core.transformer import TransformerConfig

from megatron_trainer.failure import InvalidInput
from megatron_trainer.lora import agree, select
from megatron_trainer.lora.names import named_parameters, unwrapped
from megatron_trainer.lora.placement import is_expert
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.violation import Violation

OUTPUT_LAYER = "output_layer"
WORD_EMBEDDINGS = "embedding.word_embeddings"


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """The request, together with what this rank holds: the kinds that can be adapted, and every module."""

    kinds: Mapping[str, select.Kind]
    modules: Mapping[str, torch.nn.Module]
    adapted: select.Selection
    saved: select.Selection


def refuse(chunks: list[torch.nn.Module], args: TrainArgs, wishes: Wishes) -> None:
    """Returns if the request can be satisfied; else raises InvalidInput with all problems. Collective."""
    by_regex = args.target_regex is not None
    unmatched = [
        *_unmatched("target_regex" if by_regex else "target_modules", wishes.adapted, wishes.kinds),
        *_unmatched("modules_to_save", wishes.saved, wishes.modules),
    ]
    model = unwrapped(chunks[0])
    wrong = [
        *_wrong_for_experts(model.config, wishes),
        *(_wrong_for_tied_weights(wishes) if model.share_embeddings_and_output_weights else ()),
        *_twice(wishes),
    ]
    if args.lora_bias == "all" and not agree.union(_biases(chunks)):
        wrong.append(_violation("lora_bias", "all", "this model has no biases; leave lora_bias at none"))
    problems = (*unmatched, *agree.violations(wrong))
    if problems:
        raise InvalidInput(problems)


def _unmatched(argument: str, selection: select.Selection, available: Mapping[str, object]) -> list[Violation]:
    unmatched = agree.intersection(selection.unmatched)
    return select.nothing_matches(argument, unmatched, agree.union(available))


def _wrong_for_experts(config: TransformerConfig, wishes: Wishes) -> Iterator[Violation]:
    size = parallel_state.get_expert_tensor_parallel_world_size()
    if size > 1 and any(map(is_expert, wishes.adapted.names)):
        yield _violation(
            "expert_tensor_parallel_size",
            size,
            "adapters of experts need whole experts on each rank; set expert_tensor_parallel_size to 1, or "
            "name target_modules that leave the experts out",
        )
    shared = any(".shared_experts." in name for name in wishes.adapted.names)
    if shared and config.moe_shared_expert_overlap and config.tensor_model_parallel_size > 1:
        yield _violation(
            "moe_shared_expert_overlap",
            True,
            "overlapped shared experts communicate outside their linears, where adapters cannot be applied; "
            "disable it, or name target_modules that leave the shared experts out",
        )


def _wrong_for_tied_weights(wishes: Wishes) -> Iterator[Violation]:
    """The output layer of such a model has no weight of its own: it uses the word embeddings."""
    remedy = "name word_embeddings in modules_to_save, which trains both"
    for argument, selection in (("target_modules", wishes.adapted), ("modules_to_save", wishes.saved)):
        if OUTPUT_LAYER in selection.names:
            message = f"this model's output layer shares the weight of its word embeddings; {remedy}"
            yield _violation(argument, OUTPUT_LAYER, message)
    if WORD_EMBEDDINGS in wishes.adapted.names:
        message = (
            "the output layer shares this weight, and merging an adapter into it would change the output layer "
            f"too; {remedy}"
        )
        yield _violation("target_modules", WORD_EMBEDDINGS, message)


def _twice(wishes: Wishes) -> Iterator[Violation]:
    saved = wishes.saved.names
    for name in sorted(name for name in wishes.adapted.names if name in saved or _owners(name) & saved):
        message = "would be adapted and trained in full at once; take it out of target_modules or modules_to_save"
        yield _violation("modules_to_save", name, message)


def _owners(name: str) -> frozenset[str]:
    """The modules that hold this one."""
    parts = name.split(".")
    return frozenset(".".join(parts[:number]) for number in range(1, len(parts)))


def _biases(chunks: list[torch.nn.Module]) -> list[str]:
    return [name for name, _ in named_parameters(chunks) if "bias" in name.rsplit(".", 1)[-1]]


def _violation(argument: str, value: object, message: str) -> Violation:
    return Violation(path=f"spec.args.{argument}", value=value, message=message)
