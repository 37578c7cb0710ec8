"""A step of megatron-core's distributed optimizer whose Adam takes one pass over its numbers (patches.one_pass_adam).

megatron-core divides all gradients by the number of tokens, multiplies them by the factor that clips them, runs
TransformerEngine's Adam, and copies the main parameters to the weights: four passes. Here the first two become one
factor, and Adam's kernel does the rest. What that kernel does not know, such as 8-bit moments, parameters in the host's
memory or a loss scale, keeps megatron-core's steps.
"""

# ruff: noqa: ANN401 - optimizers of megatron-core and TransformerEngine, which have no types
from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

from megatron_trainer.megatron.patches import one_pass_adam
from megatron_trainer.megatron.patches.fused_adam import MAIN, is_fused
from megatron_trainer.megatron.patches.one_pass_adam import Numbers, Rows, Settings

_MOMENTS = ("exp_avg", "exp_avg_sq")
_EPSILON = 1e-6
"""megatron-core's, added to the norm that gradients are divided by."""


@dataclass(frozen=True, kw_only=True)
class OnePassUpdate:
    """Takes the place of the optimizer's own step.

    factor: float32 [1] on the GPU; what gradients have still to be multiplied with, 1 between two steps.
    """

    optimizer: Any
    chunks: Sequence[Any]
    factor: Tensor

    @contextlib.contextmanager
    def defers_scaling(self) -> Iterator[None]:
        """Keeps the number that all gradients of the step are to be multiplied with, instead of doing so."""
        for chunk in self.chunks:
            chunk.scale_gradients = self.factor.copy_
        try:
            yield
        finally:
            for chunk in self.chunks:
                del chunk.scale_gradients

    @torch.no_grad()
    def step(self) -> tuple[bool, Any, Any]:
        """As the optimizer's own: whether it succeeded, the norm of the gradients, the number of zeros in them."""
        optimizer = self.optimizer
        optimizer.prepare_grads()
        norm = optimizer.get_grad_norm() * self.factor
        clip = max(part.config.clip_grad for part in _parts(optimizer))
        if clip > 0:
            optimizer._compute_grad_norms_by_group()  # asks all ranks, once, whether any has such a group
        num_zeros = optimizer.count_zeros() if optimizer.config.log_num_zeros_in_grad else None
        if clip > 0:
            self.factor.mul_((clip / (norm + _EPSILON)).clamp(max=1.0))
        try:
            return optimizer.step_with_ready_grads(), norm, num_zeros
        finally:
            self.factor.fill_(1.0)


def of(optimizer: Any, chunks: Sequence[Any]) -> OnePassUpdate | None:
    """None where a part of the optimizer needs its own step. Sets that step on the parts of those that do not."""
    parts = _parts(optimizer)
    if not parts or not all(map(_fits, parts)):
        return None
    factor = torch.ones(1, dtype=torch.float32, device="cuda")
    for part in parts:
        _replace_step(part, factor)
        _set_gradients_once(part)
    return OnePassUpdate(optimizer=optimizer, chunks=chunks, factor=factor)


def _parts(optimizer: Any) -> list[Any]:
    """Without those that have no parameters on this rank."""
    chained = getattr(optimizer, "chained_optimizers", [optimizer])
    return [part for part in chained if not getattr(part, "is_stub_optimizer", False)]


def _fits(part: Any) -> bool:
    is_distributed = isinstance(part, DistributedOptimizer)
    return is_distributed and is_fused(part) and _is_plain(part) and _is_known(part.optimizer)


def _is_plain(part: Any) -> bool:
    """No loss scale, no 8-bit weights, and one norm by which all gradients are clipped."""
    ddp, settings = part.ddp_config, part.config
    converts = ddp.fp8_param_gather or ddp.fp4_param_gather or settings.reuse_grad_buf_for_mxfp8_param_ag
    own_norms = any(getattr(each, "grad_norm_group", None) is not None for each in part.get_parameters())
    skips = math.isfinite(settings.grad_norm_skip_threshold)
    return not (converts or own_norms or skips or part.grad_scaler is not None or ddp.use_megatron_fsdp)


def _is_known(inner: Any) -> bool:
    """Whether the kernel computes what this Adam of TransformerEngine does."""
    has_types = {inner.exp_avg_dtype, inner.exp_avg_sq_dtype} <= set(one_pass_adam.TYPES_OF_STATE)
    has_main = not inner.master_weights or inner.master_weight_dtype == torch.float32
    parameters = [each for group in inner.param_groups for each in group["params"]]
    known = {torch.float32, torch.bfloat16} if inner.master_weights else {torch.float32}
    has_known = all(each.is_cuda and each.dtype in known for each in parameters)
    return bool(has_types and has_main and has_known and inner.adam_w_mode and not inner.capturable)


def _replace_step(part: Any, factor: Tensor) -> None:
    inner, weights = part.optimizer, _weights(part)
    groups = [_Group(inner=inner, weights=weights, factor=factor) for _ in inner.param_groups]

    def step(closure: None = None, grad_scaler: None = None) -> None:
        for group, held in zip(inner.param_groups, groups, strict=True):
            group["step"] = group.get("step", 0) + 1
            one_pass_adam.step(held.rows(group["params"]), factor, _settings(group))

    inner.step = step
    part._copy_main_params_to_model_params = lambda: None


def _set_gradients_once(part: Any) -> None:
    """Gradients are parts of a buffer that is zeroed as a whole; megatron-core finds all of them in each step."""
    parameters = [each for groups in (part.model_float16_groups, part.model_fp32_groups) for g in groups for each in g]
    is_copied = not part.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8
    if is_copied and any(each.main_grad.dtype != torch.float32 for each in parameters):
        return
    set_all, choose = part._copy_model_grads_to_main_grads, part.get_grads_for_grad_norm

    def set_once() -> None:
        set_all()
        chosen = choose()
        part._copy_model_grads_to_main_grads = lambda: None
        part.get_grads_for_grad_norm = lambda group=None: chosen if group is None else choose(group)

    part._copy_model_grads_to_main_grads = set_once
    part.zero_grad = lambda set_to_none=True: None


@dataclass(kw_only=True)
class _Group:
    """The table of a group of parameters, built once and whenever a tensor has moved or been replaced."""

    inner: Any
    weights: dict[Tensor, Tensor]
    factor: Tensor
    _state: Any = None
    _held: list[_Held] = field(default_factory=list)
    _rows: Rows = field(default_factory=dict)

    def rows(self, parameters: Sequence[Tensor]) -> Rows:
        """Looks at thousands of parameters in each step, which must not take longer than their update."""
        is_known = self._state is self.inner.state and len(self._held) == len(parameters)
        if not is_known or not all(map(self._is_same, self._held, parameters)):
            numbers = [each for p in parameters if (each := _numbers(self.inner, p, self.weights.get(p)))]
            self._rows = one_pass_adam.rows_of(numbers, self.factor)
            self._state, self._held = self.inner.state, list(map(self._look, parameters))
        return self._rows

    def _look(self, parameter: Tensor) -> _Held:
        gradient, state = _gradient(self.inner, parameter), self.inner.state[parameter]
        tensors = tuple(state.get(name) for name in (*_MOMENTS, MAIN))
        return parameter, parameter.data_ptr(), None if gradient is None else gradient.data_ptr(), state, *tensors

    def _is_same(self, held: _Held, parameter: Tensor) -> bool:
        """Gradients are other views of the same memory in each step, moments the same tensors."""
        known, address, of_gradient, state, first, second, main = held
        gradient = _gradient(self.inner, parameter)
        return (
            known is parameter
            and parameter.data_ptr() == address
            and (None if gradient is None else gradient.data_ptr()) == of_gradient
            and state.get("exp_avg") is first
            and state.get("exp_avg_sq") is second
            and state.get(MAIN) is main
        )


_Held = tuple[Tensor, int, int | None, Any, Any, Any, Any]
"""Parameter, its address, its gradient's, the optimizer's state of it, and that state's tensors."""


def _weights(part: Any) -> dict[Tensor, Tensor]:
    """The part of a weight that each main parameter is copied to, where the inner optimizer knows main ones only."""
    if part.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8:
        return {}
    mains = (each for groups in (part.shard_fp32_from_float16_groups, part.shard_fp32_groups) for each in groups)
    models = (each for groups in (part.model_float16_groups, part.model_fp32_groups) for each in groups)
    return {
        main: _in_buffer(part, weight)
        for group, weights in zip(mains, models, strict=True)
        for main, weight in zip(group, weights, strict=True)
    }


def _in_buffer(part: Any, weight: Tensor) -> Tensor:
    own = part._get_model_param_range_map(weight)["gbuf_world_in_bucket"]
    index, _, bucket = part.model_param_gbuf_map[weight]
    data: Tensor = part.buffers[index].buckets[bucket].param_data
    return data.view(-1)[own.start : own.end]


def _gradient(inner: Any, parameter: Tensor) -> Tensor | None:
    return getattr(parameter, "decoupled_grad", None) if inner.use_decoupled_grad else parameter.grad


def _numbers(inner: Any, parameter: Tensor, weight: Tensor | None) -> Numbers | None:
    gradient = _gradient(inner, parameter)
    if gradient is None or not gradient.numel():
        return None
    is_split = inner.store_param_remainders and parameter.dtype == torch.bfloat16
    state = inner.state[parameter]
    if not state:
        inner.initialize_state(parameter, is_split)
    first, second = (state[name] for name in _MOMENTS)
    tensors = {"gradient": gradient, "first": first, "second": second}
    if is_split:
        return Numbers(main=parameter, remainder=state[MAIN], **tensors)
    if parameter.dtype == torch.bfloat16:
        return Numbers(main=state[MAIN], weight=parameter, **tensors)
    is_weight = weight is None or weight.data_ptr() == parameter.data_ptr()
    return Numbers(main=parameter, weight=None if is_weight else weight, **tensors)


def _settings(group: dict[str, Any]) -> Settings:
    beta1, beta2 = group["betas"]
    return Settings(
        rate=group["lr"],
        beta1=beta1,
        beta2=beta2,
        eps=group["eps"],
        decay=group["weight_decay"],
        step=group["step"],
        corrects_bias=bool(group["bias_correction"]),
    )
