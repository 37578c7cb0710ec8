"""Merges adapters into the weights, unmerges them, or disables them temporarily.

Merging is W += s * B@A on each rank's own part, without communication. It is computed in float32 and rounded once to
the weight's type; unmerging restores the weights bit for bit from a copy on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from megatron_trainer.lora.adapter import adapted_modules, adapter_of
from megatron_trainer.lora.names import is_adapter, named_parameters

_ORIGINAL = "original"
_IS_FIRST_USE = "is_first_microbatch"


@torch.no_grad()
def merge_adapters(chunks: Sequence[torch.nn.Module], *, keep_originals: bool = True) -> None:
    """Adds every adapter to its weight and deactivates it; keep_originals makes unmerge_adapters possible.

    Raises ValueError when they are merged already.
    """
    modules = adapted_modules(chunks)
    if any(adapter_of(module).originals is not None for module in modules):
        raise ValueError("the adapters are already merged")
    for module in modules:
        adapter = adapter_of(module)
        pairs = list(adapter.pairs(module))
        adapter.originals = [(p.weight, p.weight.to("cpu", copy=True)) for p in pairs if keep_originals]
        for pair in pairs:
            pair.weight.copy_(pair.weight.float() + pair.delta(adapter.settings.scale))
        adapter.active = False
        _forget_cached_weights(module)


@torch.no_grad()
def unmerge_adapters(chunks: Sequence[torch.nn.Module]) -> None:
    """Restores the weights from before merge_adapters and activates the adapters.

    Raises ValueError when they were not merged with keep_originals.
    """
    modules = adapted_modules(chunks)
    if not all(adapter_of(module).originals for module in modules):
        raise ValueError("there are no weights from before a merge; merge with keep_originals")
    for module in modules:
        adapter = adapter_of(module)
        for weight, original in adapter.originals or ():
            weight.copy_(original)
        adapter.originals = None
        adapter.active = True
        _forget_cached_weights(module)


def merged_weights(chunks: Sequence[torch.nn.Module]) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from a parameter to its values with its adapter merged in, computed on demand.

    An export that reads through it (convert.save.save_model(read=...)) holds one merged weight at a time and changes no
    weight, so there is nothing to restore.
    """
    pairs = {
        id(pair.weight): (pair, adapter_of(module).settings.scale)
        for module in adapted_modules(chunks)
        for pair in adapter_of(module).pairs(module)
    }

    @torch.no_grad()
    def read(parameter: torch.Tensor) -> torch.Tensor:
        if id(parameter) not in pairs:
            return parameter.data
        pair, scale = pairs[id(parameter)]
        merged_value: torch.Tensor = parameter.float() + pair.delta(scale)
        return merged_value.to(parameter.dtype)

    return read


@contextmanager
def merged(chunks: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Context in which the adapters are merged into the model's weights; on exit they are restored bit for bit."""
    merge_adapters(chunks)
    try:
        yield
    finally:
        unmerge_adapters(chunks)


@contextmanager
def adapters_disabled(chunks: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Context in which the model is the base model without adapters: the reference policy of preference training.

    Weights that train in full are swapped for their originals, in place.
    Raises ValueError when such weights exist and add_adapters kept no originals.
    """
    modules = adapted_modules(chunks)
    trained = [p for name, p in named_parameters(chunks) if p.requires_grad and not is_adapter(name)]
    if any(not hasattr(parameter, _ORIGINAL) for parameter in trained):
        raise ValueError("the originals of weights that train in full were not kept")
    _set_active(modules, active=False)
    _swap(trained)
    try:
        yield
    finally:
        _swap(trained)
        _set_active(modules, active=True)


def keep_original(parameter: torch.nn.Parameter) -> None:
    """Keeps a copy of the values beside the parameter, for adapters_disabled."""
    setattr(parameter, _ORIGINAL, parameter.detach().clone())


def original_of(parameter: torch.nn.Parameter) -> torch.Tensor:
    """The copy that keep_original made."""
    original: torch.Tensor = getattr(parameter, _ORIGINAL)
    return original


def _set_active(modules: Sequence[torch.nn.Module], *, active: bool) -> None:
    for module in modules:
        adapter_of(module).active = active


@torch.no_grad()
def _swap(parameters: list[torch.nn.Parameter]) -> None:
    for parameter in parameters:
        current = parameter.detach().clone()
        parameter.copy_(original_of(parameter))
        original_of(parameter).copy_(current)


def _forget_cached_weights(module: torch.nn.Module) -> None:
    """TransformerEngine caches a low-precision copy of a weight until a new step is announced."""
    if hasattr(module, _IS_FIRST_USE):
        setattr(module, _IS_FIRST_USE, True)
