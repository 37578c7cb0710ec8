"""The adapters' effect put into the weights, taken out of them, or left out for a while.

Merging is W += s * B@A on each rank's own part, without communication. It is computed in float32 and rounded once
to the weight's type; taking it out restores the weights as they were, bit by bit, from a copy on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from megatron_trainer.lora.names import is_adapter, named_parameters, unwrapped

Adapted = list[torch.nn.Module]


def adapted_modules(chunks: list[torch.nn.Module]) -> Adapted:
    """This rank's modules that have an adapter, as `module.lora`."""
    return [module for chunk in map(unwrapped, chunks) for module in chunk.modules() if hasattr(module, "lora")]


@torch.no_grad()
def merge_adapters(chunks: list[torch.nn.Module], *, keep_originals: bool = True) -> None:
    """Adds every adapter to its weight and switches it off; keep_originals makes unmerge_adapters possible.

    Raises ValueError when they are merged already.
    """
    modules = adapted_modules(chunks)
    if any(_is_merged(module) for module in modules):
        raise ValueError("the adapters are merged already")
    for module in modules:
        pairs = list(module.lora.pairs(module))
        module.lora.merged = [(p.weight, p.weight.to("cpu", copy=True)) for p in pairs if keep_originals]
        for pair in pairs:
            pair.weight.copy_(pair.weight.float() + pair.delta(module.lora.settings.scale))
        module.lora.active = False
        _forget_cached_weights(module)


@torch.no_grad()
def unmerge_adapters(chunks: list[torch.nn.Module]) -> None:
    """Puts back the weights from before merge_adapters and switches the adapters on.

    Raises ValueError when they were not merged with keep_originals.
    """
    modules = adapted_modules(chunks)
    if not all(getattr(module.lora, "merged", None) for module in modules):
        raise ValueError("there are no weights from before a merge; merge with keep_originals")
    for module in modules:
        for weight, original in module.lora.merged:
            weight.copy_(original)
        module.lora.merged = None
        module.lora.active = True
        _forget_cached_weights(module)


def merged_weights(chunks: list[torch.nn.Module]) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from a parameter to its values with its adapter merged in, computed when asked for.

    An export that reads through it (convert.save.save_model(read=...)) holds one merged weight at a time, changes no
    weight, and so has nothing to restore.
    """
    pairs = {
        id(pair.weight): (pair, module.lora.settings.scale)
        for module in adapted_modules(chunks)
        for pair in module.lora.pairs(module)
    }

    @torch.no_grad()
    def read(parameter: torch.Tensor) -> torch.Tensor:
        if id(parameter) not in pairs:
            return parameter.data
        pair, scale = pairs[id(parameter)]
        return (parameter.float() + pair.delta(scale)).to(parameter.dtype)

    return read


@contextmanager
def merged(chunks: list[torch.nn.Module]) -> Iterator[None]:
    """Within it, the model's weights hold the adapters; after it, they are what they were, bit by bit."""
    merge_adapters(chunks)
    try:
        yield
    finally:
        unmerge_adapters(chunks)


@contextmanager
def adapters_disabled(chunks: list[torch.nn.Module]) -> Iterator[None]:
    """Within it, the model is the one from before adapters: the reference policy of preference training.

    Weights that train in full are swapped for their originals, in place.
    Raises ValueError when such weights exist and add_adapters kept no originals.
    """
    modules = adapted_modules(chunks)
    trained = [p for name, p in named_parameters(chunks) if p.requires_grad and not is_adapter(name)]
    if any(not hasattr(parameter, "original") for parameter in trained):
        raise ValueError("the originals of weights that train in full were not kept")
    _set_active(modules, active=False)
    _swap(trained)
    try:
        yield
    finally:
        _swap(trained)
        _set_active(modules, active=True)


def _is_merged(module: torch.nn.Module) -> bool:
    return getattr(module.lora, "merged", None) is not None


def _set_active(modules: Adapted, *, active: bool) -> None:
    for module in modules:
        module.lora.active = active


@torch.no_grad()
def _swap(parameters: list[torch.nn.Parameter]) -> None:
    for parameter in parameters:
        current = parameter.detach().clone()
        parameter.copy_(parameter.original)
        parameter.original.copy_(current)


def _forget_cached_weights(module: torch.nn.Module) -> None:
    """TransformerEngine keeps a low-precision copy of a weight until told that a new step has begun."""
    if hasattr(module, "is_first_microbatch"):
        module.is_first_microbatch = True
