"""Attaches an adapter to the module it adapts: `module.lora`, whose term is added to the module's output.

The module keeps its place, its name and its weight's name, so weight tables, base checkpoints and Megatron's checks by
name still apply; a wrapper module, as in PEFT, would rename every weight. Only the class is replaced by a subclass with
the extra term, as torch.nn.utils.parametrize does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from megatron.core.tensor_parallel.mappings import gather_from_tensor_model_parallel_region

from megatron_trainer.lora.adapter import MODULE, Adapter, Offsets, adapter_of
from megatron_trainer.lora.names import named_modules
from megatron_trainjob.families.vision import is_tower

Forward = Callable[..., Any]
Output = torch.Tensor | tuple[Any, ...]
"""Result of a linear: y, or (y, bias), optionally with the output of the fused norm."""

_RETURNS_NORM = "return_layernorm_output"
_QUANTIZERS = "_get_quantizers"
"""Of TransformerEngine's linears; the last is the one of the output's gradient."""
_RETURNS_BIAS = ("te_return_bias", "return_bias")
_BIAS_STAYS_OUT = "skip_bias_add"


def attach(module: torch.nn.Module, adapter: Adapter, *, method: str = "forward") -> None:
    """Makes the method of `module` return its result plus `adapter`'s while the adapter is active.

    method: "forward", or "gating" of a router, whose forward also does the routing.
    """
    if hasattr(module, "layer_norm_weight"):  # the adapter's input is the output of the fused norm
        setattr(module, _RETURNS_NORM, True)
    module.add_module(MODULE, adapter)
    base: type = type(module)
    module.__class__ = _adapted_class(base, method)


def train_biases_of_frozen_weights(chunks: Sequence[torch.nn.Module]) -> None:
    """Adds the bias outside of every linear whose bias trains but whose weight is frozen.

    Megatron's linear with a frozen weight returns no gradient for the bias (LinearWithFrozenWeight), so such a bias
    would silently not train.
    """
    for name, module in named_modules(chunks):
        if is_tower(name):  # torch's own linears do not need it
            continue
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if not isinstance(bias, torch.Tensor) or not isinstance(weight, torch.Tensor):
            continue
        if bias.requires_grad and not weight.requires_grad:
            _add_bias_outside(module)


def _add_bias_outside(linear: torch.nn.Module) -> None:
    if getattr(linear, _BIAS_STAYS_OUT, False) or getattr(linear, _RETURNS_BIAS[0], False):
        return  # the caller adds it already
    for name in _RETURNS_BIAS if hasattr(linear, _RETURNS_BIAS[0]) else (_BIAS_STAYS_OUT,):
        setattr(linear, name, True)
    base: type = type(linear)
    linear.__class__ = _bias_outside_class(base)


@functools.cache
def _adapted_class(base: type, method: str) -> type:
    members: dict[str, object] = {method: _with_adapter(getattr(base, method))}
    if hasattr(base, _QUANTIZERS):
        members[_QUANTIZERS] = _with_gradients_quantized_once(getattr(base, _QUANTIZERS))
    base_state = getattr(base, "sharded_state_dict", None)
    if base_state is not None:
        members["sharded_state_dict"] = _with_adapter_state(base_state)
    return type(f"Adapted{base.__name__}", (base,), members)


@functools.cache
def _bias_outside_class(base: type) -> type:
    linear: Any = base

    def forward(self: torch.nn.Module, *args: object, **kwargs: object) -> tuple[object, ...]:
        y, bias, *normed = linear.forward(self, *args, **kwargs)
        return y + bias, None, *normed

    return type(f"BiasOutside{base.__name__}", (base,), {"forward": forward})


def _with_adapter(base_forward: Forward) -> Forward:
    """The forward pass with the adapter's term; called with apart=True it returns (y, low) for y (Adapter.apart)."""

    @functools.wraps(base_forward)
    def forward(
        self: torch.nn.Module, x: torch.Tensor, *args: torch.Tensor, apart: bool = False, **kwargs: object
    ) -> Output:
        adapter = adapter_of(self)
        if not adapter.active:
            result = _without_norm_output(self, base_forward(self, x, *args, **kwargs), x)[0]
            return _with_y(result, (_y_of(result), None)) if apart else result
        gathers, low = _gathers_output(self, kwargs), None
        if not gathers and not getattr(self, _RETURNS_NORM, False):
            x, low = adapter.branch(x)
        result, seen = _without_norm_output(self, base_forward(self, x, *args, **kwargs), x)
        counts = args if hasattr(self, "num_gemms") else ()  # tokens of each expert
        if apart:
            assert not gathers
            return _with_y(result, adapter.apart(_y_of(result), seen, low, *counts))
        if gathers:
            term = gather_from_tensor_model_parallel_region(adapter(seen, *counts), group=adapter.group)
            return _with_y(result, _y_of(result) + term)
        return _with_y(result, adapter.add_to(_y_of(result), seen, low, *counts))

    return forward


def _y_of(result: Output) -> torch.Tensor:
    y: torch.Tensor = result[0] if isinstance(result, tuple) else result
    return y


def _with_y(result: Output, y: Any) -> Output:  # noqa: ANN401 - a tensor, or a pair where it was asked for
    replaced: Output = (y, *result[1:]) if isinstance(result, tuple) else y
    return replaced


def _with_gradients_quantized_once(base_quantizers: Forward) -> Forward:
    """TransformerEngine's linear with a norm also quantizes its output's gradient transposed, for the gradient of its
    weight, even if that is frozen; with a bias its kernel does both in one.
    """

    @functools.wraps(base_quantizers)
    def quantizers(self: torch.nn.Module, *args: object, **kwargs: object) -> Sequence[Any]:
        found: Sequence[Any] = base_quantizers(self, *args, **kwargs)
        is_plain = getattr(self, _RETURNS_NORM, False) and not getattr(self, "use_bias", True)
        if is_plain and found[-1] is not None and not self.get_parameter("weight").requires_grad:
            found[-1].set_usage = functools.partial(_use_rows_only, found[-1])
        return found

    return quantizers


def _use_rows_only(quantizer: Any, *, rowwise: bool | None = None, columnwise: bool | None = None) -> None:  # noqa: ANN401
    del columnwise
    type(quantizer).set_usage(quantizer, rowwise=rowwise, columnwise=False)


def _with_adapter_state(base_state: Forward) -> Forward:
    """The module's own entries without those of the adapter's tensors, which it treats as unsharded."""

    @functools.wraps(base_state)
    def sharded_state_dict(
        self: torch.nn.Module,
        prefix: str = "",
        sharded_offsets: Offsets = (),
        metadata: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        entries = base_state(self, prefix, sharded_offsets, metadata)
        inner = f"{prefix}{MODULE}."
        own = {key: entry for key, entry in entries.items() if not key.startswith(inner)}
        return {**own, **adapter_of(self).sharded_state_dict(inner, sharded_offsets, metadata)}

    return sharded_state_dict


def _without_norm_output(module: torch.nn.Module, result: Output, x: torch.Tensor) -> tuple[Output, torch.Tensor]:
    """(result as callers expect it, input of the linear itself).

    A linear with a fused norm that also returns the norm's output returns (y, bias, normed) if it returns a bias, else
    ((y, normed), None).
    """
    if not isinstance(result, tuple) or not getattr(module, _RETURNS_NORM, False):
        return result, x
    if len(result) == 3:
        return result[:2], result[2]
    (y, normed), bias = result
    return (y, bias), normed


def _gathers_output(module: torch.nn.Module, kwargs: Mapping[str, object]) -> bool:
    asked = kwargs.get("runtime_gather_output")
    return bool(getattr(module, "gather_output", False) if asked is None else asked)
