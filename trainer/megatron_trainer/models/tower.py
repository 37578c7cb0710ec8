"""The vision tower of a model: transformers' own module, on the first pipeline stage, whole on every rank of it.

Every tensor-parallel rank computes the same features from the same pixels and gets the whole gradient of them, so the
tower's gradients are equal without communication. It is never split.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from megatron_trainer.backend import Backend
from megatron_trainjob.args.tree import TrainArgs

if TYPE_CHECKING:
    from megatron_trainer.models.spec import ModelSpec


def build_tower(spec: ModelSpec, args: TrainArgs, backend: Backend) -> nn.Module:
    """The tower with the aligner; weights are loaded or initialized later."""
    whole = spec.whole_hf_config
    small = deepcopy(whole)
    small.text_config.num_hidden_layers = 1
    with torch.device("meta"):
        kind = type(AutoModelForImageTextToText.from_config(small).model.visual)
    tower: nn.Module = kind._from_config(
        whole.vision_config, dtype=spec.dtype, attn_implementation=_attention(spec, backend)
    )
    _keep_wide(tower)
    if args.vit_gradient_checkpointing:
        given = args.gradient_checkpointing_kwargs or {}
        enable: Any = tower.gradient_checkpointing_enable
        keywords = {"use_reentrant": False, **given}
        enable(gradient_checkpointing_kwargs=keywords)
        if keywords["use_reentrant"]:
            _let_gradients_into(tower)
    return tower


def _let_gradients_into(tower: Any) -> None:  # noqa: ANN401 - differs by family
    """Layers that are recomputed as reentrant graphs train only if their input requires a gradient, which that of the
    first one does not if what comes before it is frozen, as under LoRA.
    """

    def require_gradient(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        if torch.is_grad_enabled() and any(p.requires_grad for p in tower.blocks.parameters()):
            output.requires_grad_(True)

    tower.patch_embed.register_forward_hook(require_gradient)


def _attention(spec: ModelSpec, backend: Backend) -> str:
    """Windows and images of any size in one call where flash-attn is there; else one call each."""
    is_half = spec.dtype in (torch.bfloat16, torch.float16)
    return "flash_attention_2" if is_half and "flash_attention" in backend.fused_kernels() else "sdpa"


def _keep_wide(tower: nn.Module) -> None:
    """Keeps rotary frequencies in float32, as transformers does: buffers are converted with the parameters."""
    for module in tower.modules():
        if module._non_persistent_buffers_set:
            module._apply = partial(_moved, module)  # type: ignore[method-assign]


def _moved(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:  # noqa: FBT001 - torch's
    """Applies a change of device or type to a module, but only the device to the buffers that no checkpoint has."""
    wide = {name: getattr(module, name) for name in module._non_persistent_buffers_set}
    type(module)._apply(module, change, recurse)  # type: ignore[no-untyped-call]
    for name, values in wide.items():
        setattr(module, name, values.to(getattr(module, name).device))
    return module
