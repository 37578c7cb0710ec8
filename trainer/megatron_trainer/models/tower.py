"""The vision tower of a model: transformers' own modules, on the first pipeline stage, whole on every rank of it.

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
from megatron_trainer.models import joined_attention
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.families.vision import Vision

if TYPE_CHECKING:
    from megatron_trainer.models.spec import ModelSpec


def build_tower(spec: ModelSpec, args: TrainArgs, backend: Backend) -> nn.Module:
    """The tower with the aligner; weights are loaded or initialized later."""
    whole = spec.whole_hf_config
    small = deepcopy(whole)
    small.text_config.num_hidden_layers = 1
    tower: nn.Module
    with torch.device("meta"):
        object_: Any = AutoModelForImageTextToText.from_config(small).model
    attention = _attention(spec, backend)
    if _is_cut(spec):
        tower = _without_decoder(type(object_), small, spec.dtype, attention)
    else:
        tower = type(object_.visual)._from_config(whole.vision_config, dtype=spec.dtype, attn_implementation=attention)
    _keep_wide(tower)
    if attention == "sdpa" and joined_attention.is_available(backend.device, spec.dtype):
        joined_attention.join(tower)
    if args.vit_gradient_checkpointing:
        given = args.gradient_checkpointing_kwargs or {}
        enable: Any = tower.gradient_checkpointing_enable
        keywords = {"use_reentrant": False, **given}
        enable(gradient_checkpointing_kwargs=keywords)
        if keywords["use_reentrant"]:
            _let_gradients_into(tower)
    return tower


def features(tower: Any, vision: Vision, pixels_PD: Tensor, grid_N3: Tensor) -> list[Tensor]:  # noqa: ANN401
    """What the decoder gets of images: embeddings of their tokens [F, H], and states of deep layers of the same form.

    pixels_PD, grid_N3: as of MicroBatch; the patches of a tile are its values in order, so that all tiles are a view.
    """
    if vision.tile:
        pixels_NCHW = pixels_PD.view(-1, vision.channels, vision.tile, vision.tile)
        return [tower.get_image_features(pixels_NCHW, return_dict=True).pooler_output.flatten(0, 1)]
    output = tower(pixels_PD, grid_thw=grid_N3)
    return [output.pooler_output, *(getattr(output, "deepstack_features", None) or ())]


def _is_cut(spec: ModelSpec) -> bool:
    return spec.model.vision is not None and spec.model.vision.tile > 0


def _without_decoder(kind: Any, small: Any, dtype: torch.dtype, attention: str) -> nn.Module:  # noqa: ANN401
    """A model without its decoder: the tower, the aligner, and how transformers joins them."""
    with torch.device("meta"):
        tower: nn.Module = kind._from_config(
            small, dtype=dtype, attn_implementation={"vision_config": attention, "text_config": "eager"}
        )
    del tower.language_model
    return tower.to_empty(device="cpu")


def _let_gradients_into(tower: Any) -> None:  # noqa: ANN401 - differs by family
    """Layers that are recomputed as reentrant graphs train only if their input requires a gradient, which that of the
    first one does not if what comes before it is frozen, as under LoRA.
    """
    inner = getattr(tower, "vision_tower", None)
    layers, first = (tower.blocks, tower.patch_embed) if inner is None else (inner.encoder.layer, inner.embeddings)

    def require_gradient(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        if torch.is_grad_enabled() and any(p.requires_grad for p in layers.parameters()):
            output.requires_grad_(True)

    first.register_forward_hook(require_gradient)


def _attention(spec: ModelSpec, backend: Backend) -> str:
    """Windows and images of any size in one call where flash-attn is there, or torch's kernel; else one call each."""
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
