"""Puts an adapter inside the module it adapts: `module.lora`, added to what the module returns.

The module keeps its place, its name and its weight's name, so weight tables, checkpoints of the base and
Megatron's checks by name see the model they know; a wrapper module (PEFT's way) would rename every weight.
Only the class is exchanged, for a subclass with the extra term, as torch.nn.utils.parametrize does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
from megatron.core.tensor_parallel.mappings import gather_from_tensor_model_parallel_region

from megatron_trainer.lora.names import named_modules

Forward = Callable[..., object]


def attach(module: torch.nn.Module, adapter: torch.nn.Module, *, method: str = "forward") -> None:
    """From now on `module`'s method returns its result plus `adapter`'s, while the adapter is active.

    method: "forward", or "gating" of a router, whose forward also does the routing.
    """
    if hasattr(module, "layer_norm_weight"):  # the adapter's input is what the fused norm puts out
        module.return_layernorm_output = True
    module.add_module("lora", adapter)
    module.__class__ = _adapted_class(type(module), method)


def train_biases_of_frozen_weights(chunks: list[torch.nn.Module]) -> None:
    """Makes every linear whose bias trains and whose weight does not add its bias outside.

    Megatron's linear with a frozen weight returns no gradient for the bias (LinearWithFrozenWeight), so such a
    bias would silently stay as it is.
    """
    for _, module in named_modules(chunks):
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if isinstance(bias, torch.Tensor) and bias.requires_grad and not weight.requires_grad:
            _add_bias_outside(module)


def _add_bias_outside(linear: torch.nn.Module) -> None:
    if getattr(linear, "skip_bias_add", False) or getattr(linear, "te_return_bias", False):
        return  # the caller adds it already
    if hasattr(linear, "te_return_bias"):
        linear.te_return_bias = linear.return_bias = True
    else:
        linear.skip_bias_add = True
    linear.__class__ = _bias_outside_class(type(linear))


@functools.cache
def _adapted_class(base: type[torch.nn.Module], method: str) -> type[torch.nn.Module]:
    members: dict[str, object] = {method: _with_adapter(getattr(base, method))}
    if hasattr(base, "sharded_state_dict"):
        members["sharded_state_dict"] = _with_adapter_state(base.sharded_state_dict)
    return type(f"Adapted{base.__name__}", (base,), members)


@functools.cache
def _bias_outside_class(base: type[torch.nn.Module]) -> type[torch.nn.Module]:
    def forward(self: torch.nn.Module, *args: object, **kwargs: object) -> tuple[object, ...]:
        y, bias, *normed = base.forward(self, *args, **kwargs)
        return y + bias, None, *normed

    return type(f"BiasOutside{base.__name__}", (base,), {"forward": forward})


def _with_adapter(base_forward: Forward) -> Forward:
    @functools.wraps(base_forward)
    def forward(self: torch.nn.Module, x: torch.Tensor, *args: object, **kwargs: object) -> object:
        result, seen = _without_norm_output(self, base_forward(self, x, *args, **kwargs), x)
        if not self.lora.active:
            return result
        added = self.lora(seen, *args) if hasattr(self, "num_gemms") else self.lora(seen)
        if _gathers_output(self, kwargs):
            added = gather_from_tensor_model_parallel_region(added, group=self.lora.place.group)
        return (result[0] + added, *result[1:]) if isinstance(result, tuple) else result + added

    return forward


def _with_adapter_state(base_state: Forward) -> Forward:
    """The module's own entries without those it made of the adapter's tensors, which it takes for whole ones."""

    @functools.wraps(base_state)
    def sharded_state_dict(
        self: torch.nn.Module, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict[str, object]:
        entries = base_state(self, prefix, sharded_offsets, metadata)
        own = {key: entry for key, entry in entries.items() if not key.startswith(f"{prefix}lora.")}
        return {**own, **self.lora.sharded_state_dict(f"{prefix}lora.", sharded_offsets, metadata)}

    return sharded_state_dict


def _without_norm_output(module: torch.nn.Module, result: object, x: torch.Tensor) -> tuple[object, torch.Tensor]:
    """(result as callers expect it, what the linear itself saw).

    A linear with a fused norm that was told to return the norm's output gives (y, bias, normed) when it returns
    a bias, else ((y, normed), None).
    """
    if not getattr(module, "return_layernorm_output", False):
        return result, x
    if len(result) == 3:
        return result[:2], result[2]
    (y, normed), bias = result
    return (y, bias), normed


def _gathers_output(module: torch.nn.Module, kwargs: Mapping[str, object]) -> bool:
    asked = kwargs.get("runtime_gather_output")
    return getattr(module, "gather_output", False) if asked is None else asked
