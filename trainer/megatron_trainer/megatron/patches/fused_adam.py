"""TransformerEngine's Adam inside megatron-core's distributed optimizer: its state in a checkpoint, and its memory.

The state may be 8- or 16-bit numbers with a scale, and main parameters may be remainders of bfloat16 weights; a
checkpoint has all of it in float32, so that any other run can read it. Three things took several times the state's own
memory: to save or load anything, megatron-core asks for the whole state as float32 copies; a step converts the moments
of all parameters at once; and 8-bit moments were held twice, the second time transposed. And where all 8-bit moments of
a parameter were zero they became NaN, scaled by the inverse of the largest.
"""

# ruff: noqa: ANN401 - optimizers of megatron-core and TransformerEngine, which have no types
from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from megatron_trainer.megatron.patches import remainders

MAIN = "master_param"
"""TransformerEngine's name for the main parameter in its state."""
_TENSORS = "param_state"
"""Name of the tensors in the distributed optimizer's state."""
CONVERTED_AT_ONCE = 2**28
"""Elements whose moments one step converts to float32 together: 1 GiB each."""


@functools.cache  # once, however often a backend is installed
def install() -> None:
    """Wraps methods of DistributedOptimizer and of TransformerEngine's Adam, where that is installed."""
    from megatron.core.optimizer import distrib_optimizer

    if not distrib_optimizer.USING_TE_OPTIMIZER:
        return
    _leave_state_aside(distrib_optimizer.DistributedOptimizer)
    _use_less_memory(distrib_optimizer.Adam)
    _keep_zeros(distrib_optimizer.Adam)


def is_fused(optimizer: Any) -> bool:
    """Whether a distributed optimizer's inner one is TransformerEngine's Adam."""
    return hasattr(optimizer.optimizer, "get_unscaled_state")


def states(optimizer: Any, parameter: torch.nn.Parameter, *, is_loading: bool) -> dict[str, Tensor]:
    """Main parameter ("param") and moments of a parameter in float32.

    Those that the optimizer holds in float32 are its own tensors. Others are in host memory: copies, or, to be loaded
    into, uninitialized.
    """
    inner, held = optimizer.optimizer, _held(optimizer, parameter)
    state = {name: value for name, value in inner.state[held].items() if isinstance(value, Tensor)}
    found = {name: _float32(inner, held, name, is_loading=is_loading) for name in state if name != MAIN}
    has_main = MAIN in state and held.dtype != torch.float32
    return {"param": _float32(inner, held, MAIN, is_loading=is_loading) if has_main else held, **found}


def set_states(optimizer: Any, parameter: torch.nn.Parameter, values: Mapping[str, Tensor]) -> None:
    """Sets what `states` returns, from float32 tensors on any device; with remainders also the weight itself."""
    inner, held = optimizer.optimizer, _held(optimizer, parameter)
    for name, value in values.items():
        on_device = value.to(held.device)
        if name != "param":
            inner.set_scaled_state(held, name, on_device)
        elif MAIN not in inner.state[held] or held.dtype == torch.float32:
            held.copy_(on_device)
        elif inner.state[held][MAIN].dtype == torch.int16:
            weight, remainder = remainders.split(on_device, held)
            held.copy_(weight)
            inner.state[held][MAIN].copy_(remainder)
        else:
            inner.set_scaled_state(held, MAIN, on_device)


def _held(optimizer: Any, parameter: torch.nn.Parameter) -> Tensor:
    """This rank's part of a parameter, by which the inner optimizer knows its state."""
    group, place = optimizer.model_param_group_index_map[parameter]
    held: Tensor = optimizer.optimizer.param_groups[group]["params"][place]
    return held


def _float32(inner: Any, held: Tensor, name: str, *, is_loading: bool) -> Tensor:
    stored: Tensor = inner.state[held][name]
    # TransformerEngine's 8-bit tensors call themselves float32.
    if type(stored) is Tensor and stored.dtype == torch.float32:
        return stored
    if is_loading:
        return torch.empty(stored.shape, dtype=torch.float32, device="cpu")
    if stored.dtype == torch.int16:
        return remainders.rebuilt(held, stored).cpu()
    unscaled: Tensor = inner.get_unscaled_state(held, name)
    return unscaled.float().cpu()


def _leave_state_aside(optimizer_class: Any) -> None:
    """Both methods need the groups alone; `optimizer_shards` saves the tensors, and loads them after the groups."""
    state_dict, load_state_dict = optimizer_class.state_dict, optimizer_class.load_state_dict

    def state_dict_of_groups(self: Any) -> Any:
        with _without_state(self):
            return state_dict(self)

    def load_groups(self: Any, loaded: dict[str, Any]) -> None:
        if not is_fused(self):
            load_state_dict(self, loaded)
            return
        with _without_state(self):
            load_state_dict(self, {name: value for name, value in loaded.items() if name != _TENSORS})
        if _TENSORS in loaded:
            self.load_parameter_state_from_fully_reshardable(loaded[_TENSORS])

    optimizer_class.state_dict = state_dict_of_groups
    optimizer_class.load_state_dict = load_groups


@contextlib.contextmanager
def _without_state(optimizer: Any) -> Iterator[None]:
    """Hides the state of TransformerEngine's Adam. It does not look empty: megatron-core would fill an empty one."""
    if not is_fused(optimizer) or not optimizer.optimizer.state:
        yield
        return
    inner = optimizer.optimizer
    state = inner.state
    inner.state = {"nothing": {}}
    try:
        yield
    finally:
        inner.state = state


def _use_less_memory(adam: Any) -> None:
    step, initialize = adam.step, adam._initialize_state

    def step_in_pieces(self: Any, closure: Any = None, grad_scaler: Any = None) -> Any:
        if closure is not None or not _converts(self):
            return step(self, closure, grad_scaler)

        def take(part: dict[str, Any]) -> None:
            self.param_groups = [part]
            step(self)

        groups = self.param_groups
        try:
            in_pieces(groups, take)
        finally:
            self.param_groups = groups
        return None

    def initialize_once(self: Any, parameter: Tensor, name: str, *args: Any, **settings: Any) -> None:
        initialize(self, parameter, name, *args, **settings)
        stored = self.state[parameter][name]
        if hasattr(stored, "_transpose"):
            stored._quantizer.set_usage(columnwise=False)
            stored._transpose, stored._transpose_invalid = None, True

    adam.step = step_in_pieces
    adam._initialize_state = initialize_once


def _keep_zeros(adam: Any) -> None:
    """All moments of a parameter are zero after a step without gradient: of an adapter's A beside a B of zeros, of an
    expert without tokens.
    """
    apply_scale = adam._apply_scale

    def apply_finite_scale(self: Any, name: str, unscaled: Tensor, scaled: Any, scale: Tensor) -> None:
        apply_scale(self, name, unscaled, scaled, scale)
        if hasattr(scaled, "_transpose"):
            scaled._data.masked_fill_(scaled._quantizer.scale.isinf(), 0)

    adam._apply_scale = apply_finite_scale


def _converts(inner: Any) -> bool:
    """Whether a step converts moments or main parameters to float32 and back, outside of its kernel."""
    moments = {inner.exp_avg_dtype, inner.exp_avg_sq_dtype}
    is_kernels_own = getattr(inner, "fuse_unscale", False) or moments == {torch.float32}
    return not is_kernels_own or (inner.master_weights and inner.master_weight_dtype != torch.float32)


def in_pieces(groups: Sequence[dict[str, Any]], take: Callable[[dict[str, Any]], None]) -> None:
    """Calls `take`, which counts the step of a group, with each group's parameters in pieces; they count as one step.

    A group whose parameters are all on other ranks has no piece, and nothing counts its steps.
    """
    for group in groups:
        parts = [{**group, "params": piece} for piece in pieces(group["params"], CONVERTED_AT_ONCE)]
        for part in parts:
            take(part)
        if parts:
            group["step"] = parts[-1]["step"]


def pieces(parameters: Sequence[Tensor], limit: int) -> list[list[Tensor]]:
    """The parameters in their order, in lists of at most `limit` elements, or of one that is larger."""
    found: list[list[Tensor]] = []
    size = 0
    for parameter in parameters:
        if not found or size + parameter.numel() > limit:
            found.append([])
            size = 0
        found[-1].append(parameter)
        size += parameter.numel()
    return found
