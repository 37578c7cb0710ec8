"""The state of any optimizer before its first step, and the step count of torch's Adam, which megatron-core 0.19's
distributed optimizer restores wrongly; it uses that without TransformerEngine and Apex.

Three faults in loading: states that Adam creates at its first step are missing; the state "step" is
forgotten by the reshardable format; and all parameters get one shared "step" tensor, so that it grows by
the number of parameters at each step and every update after a resume is wrong without any message. One in
saving: an optimizer without parameters on this rank (experts that only later stages have) is refused.
"""

# ruff: noqa: ANN401 - values of torch and megatron-core that are passed on as they are
from __future__ import annotations

from typing import Any

import torch

_GRADIENT = "decoupled_grad"


def install() -> None:
    """Wraps three methods of DistributedOptimizer. With TE or Apex the step is not a tensor and nothing needs to be
    done.
    """
    from megatron.core.optimizer import distrib_optimizer

    if distrib_optimizer.HAVE_APEX_OR_TE:
        return
    optimizer_class = distrib_optimizer.DistributedOptimizer
    load_state = optimizer_class.load_state_dict
    set_states = optimizer_class._set_main_param_and_optimizer_states
    state_dict_of = optimizer_class.state_dict

    def state_dict(self: Any) -> Any:
        if self.optimizer.state:
            return state_dict_of(self)
        self.optimizer.state["nothing"] = {"step": torch.tensor(0.0)}
        try:
            return state_dict_of(self)
        finally:
            del self.optimizer.state["nothing"]

    def load_state_dict(self: Any, state_dict: dict[str, Any]) -> Any:
        create_adam_state(self.optimizer)
        result = load_state(self, state_dict)
        for state in self.optimizer.state.values():
            if torch.is_tensor(state.get("step")):
                state["step"] = state["step"].detach().clone()
        return result

    def set_main_param_and_optimizer_states(self: Any, model_param: Any, tensors: dict[str, Any]) -> None:
        set_states(self, model_param, {"step": None, **tensors})

    optimizer_class.state_dict = state_dict
    optimizer_class.load_state_dict = load_state_dict
    optimizer_class._set_main_param_and_optimizer_states = set_main_param_and_optimizer_states


def create_state(optimizer: Any) -> None:
    """Creates for each parameter of a Megatron optimizer the state that its first step would create."""
    inner = optimizer.optimizer
    if isinstance(inner, torch.optim.Adam | torch.optim.AdamW):
        create_adam_state(inner)
    elif type(inner).__name__.endswith("SGD"):  # torch's, Apex's or TransformerEngine's
        optimizer.init_state_fn = _create_momentum  # megatron-core has none for it, and calls that
        _create_momentum(inner)
    elif inner is None or inner.state:
        return
    elif hasattr(inner, "sub_optimizers"):
        _create_offloaded_state(inner)
    elif hasattr(inner, "initialize_state"):
        # TransformerEngine's. megatron-core's own function passes one argument too few.
        for parameter in _parameters(inner):
            inner.initialize_state(parameter, inner.store_param_remainders and parameter.dtype == torch.bfloat16)
    elif optimizer.init_state_fn is not None:
        optimizer.init_state_fn(inner, optimizer.config)


def _create_momentum(optimizer: torch.optim.Optimizer, _: object = None) -> None:
    """A first step with a momentum of zeros is that of torch, which starts with the gradient."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))


def _create_offloaded_state(hybrid: Any) -> None:
    """The offloading optimizer creates its state only in a step: here one with learning rate 0 and zero gradients,
    which changes no weight and is not counted. (Its own `dummy_step` uses random gradients.)
    """
    parameters, rates = _parameters(hybrid), [group["lr"] for group in hybrid.param_groups]
    kept = [vars(parameter).get(_GRADIENT) for parameter in parameters]
    for parameter in parameters:
        setattr(parameter, _GRADIENT, torch.zeros_like(parameter))
    for group in hybrid.param_groups:
        group["lr"] = 0.0
    hybrid.step()
    for group, rate in zip(hybrid.param_groups, rates, strict=True):
        group["lr"] = rate
    for parameter, gradient in zip(parameters, kept, strict=True):
        delattr(parameter, _GRADIENT)  # even as None it would hide parameter.grad
        if gradient is not None:
            setattr(parameter, _GRADIENT, gradient)
    for part in hybrid.sub_optimizers:
        for group in part.param_groups:
            group.pop("step", None)
        for state in part.state.values():
            if torch.is_tensor(state.get("step")):
                state["step"].zero_()


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def create_adam_state(optimizer: torch.optim.Optimizer) -> None:
    """Creates for each parameter the state that Adam's first step would create, so that a checkpoint can be loaded into
    it.

    Also needed before `sharded_state_dict(is_loading=True)`, which asserts on an optimizer without state.
    Optimizers other than Adam are left unchanged.
    """
    if not isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        return
    for parameter in _parameters(optimizer):
        state = optimizer.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
