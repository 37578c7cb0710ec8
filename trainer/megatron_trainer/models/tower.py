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
from megatron_trainjob.families.vision import PREFIX, Vision

if TYPE_CHECKING:
    from megatron_trainer.models.spec import ModelSpec


def build_tower(spec: ModelSpec, args: TrainArgs, backend: Backend) -> nn.Module:
    """The tower with the aligner; weights are loaded or initialized later."""
    attention, vision = _attention(spec, backend), spec.model.vision
    if vision is not None and (vision.pads_images or vision.separates_tiles):
        tower = _beside_decoder(_object(spec.whole_hf_config), vision, spec.dtype, attention)
    else:
        tower = _before_decoder(spec, attention)
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


def _object(config: Any) -> Any:  # noqa: ANN401 - differs by family
    """transformers' model of a configuration, without its output layer and without values."""
    with torch.device("meta"):
        whole: Any = AutoModelForImageTextToText.from_config(config)
    return getattr(whole, "model", whole)  # Llama-4 has no object in between


def _before_decoder(spec: ModelSpec, attention: str) -> nn.Module:
    whole = spec.whole_hf_config
    small = deepcopy(whole)
    small.text_config.num_hidden_layers = 1
    kind: Any = _object(small)
    if _is_cut(spec):
        return _without_decoder(type(kind), small, spec.dtype, attention)
    tower: nn.Module = type(kind.visual)._from_config(
        whole.vision_config, dtype=spec.dtype, attn_implementation=attention
    )
    return tower


def _beside_decoder(model: Any, vision: Vision, dtype: torch.dtype, attention: str) -> nn.Module:  # noqa: ANN401
    """A model without its decoder, whose tower is built with its values: no checkpoint has its rotary frequencies."""
    del model.language_model
    own, aligner = (name.removeprefix(PREFIX) for name in vision.modules)
    getattr(model, aligner).to(dtype).to_empty(device="cpu")
    kind = type(getattr(model, own))
    setattr(model, own, kind._from_config(model.config.vision_config, dtype=dtype, attn_implementation=attention))
    tower: nn.Module = model
    return tower


def features(tower: Any, vision: Vision, pixels_PD: Tensor, grid_N3: Tensor) -> list[Tensor]:  # noqa: ANN401
    """What the decoder gets of images: embeddings of their tokens [F, H], and states of deep layers of the same form.

    pixels_PD, grid_N3: as of MicroBatch; the patches of a tile are its values in order, so that all tiles are a view.
    """
    if vision.pads_images:
        values_NLD, places_NL2 = _padded(pixels_PD, grid_N3)
        return [torch.cat(tower.get_image_features(values_NLD, places_NL2, return_dict=True).pooler_output)]
    if vision.tile:
        pixels_NCHW = pixels_PD.view(-1, vision.channels, vision.tile, vision.tile)
        if vision.separates_tiles:
            kind = tower.vision_model.class_embedding.dtype
            # Not get_image_features: its arguments differ between releases of transformers.
            states_NTH = tower.vision_model(pixels_NCHW.to(kind), return_dict=True).last_hidden_state
            return [tower.multi_modal_projector(states_NTH.flatten(0, 1))]
        return [tower.get_image_features(pixels_NCHW, return_dict=True).pooler_output.flatten(0, 1)]
    output = tower(pixels_PD, grid_thw=grid_N3)
    return [output.pooler_output, *(getattr(output, "deepstack_features", None) or ())]


def _padded(pixels_PD: Tensor, grid_N3: Tensor) -> tuple[Tensor, Tensor]:
    """The patches of each picture in a row, [pictures, longest, D], and the column and row of each, -1 behind the last.

    The pictures of a video are rows of their own.
    """
    sizes = [(rows, columns) for times, rows, columns in grid_N3.tolist() for _ in range(times)]
    parts = list(torch.split(pixels_PD, [rows * columns for rows, columns in sizes]))
    places = [_places(rows, columns, pixels_PD.device) for rows, columns in sizes]
    pad = nn.utils.rnn.pad_sequence
    return pad(parts, batch_first=True), pad(places, batch_first=True, padding_value=-1)


def _places(rows: int, columns: int, device: torch.device) -> Tensor:
    """(column, row) of the patches of a picture, row by row: int64 [P, 2]."""
    number_P = torch.arange(rows * columns, device=device)
    return torch.stack([number_P % columns, number_P // columns], dim=-1)


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
    layers, first = layers_and_first(tower)
    for layer in layers:
        layer.register_forward_pre_hook(_by_position, with_kwargs=True)

    def require_gradient(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        if torch.is_grad_enabled() and any(p.requires_grad for p in layers.parameters()):
            output.requires_grad_(True)

    first.register_forward_hook(require_gradient)


def _by_position(_layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
    """States that a layer gets by name, in front: reentrant graphs see tensors by position alone."""
    states = named.pop("hidden_state", None)
    return (given if states is None else (states, *given)), named


def layers_and_first(tower: Any) -> tuple[nn.ModuleList, nn.Module]:  # noqa: ANN401 - differs by family
    """The layers of a tower, and what makes states of patches before them."""
    if hasattr(tower, "vision_model"):
        return tower.vision_model.model.layers, tower.vision_model.patch_embedding
    inner = getattr(tower, "vision_tower", None)
    if inner is None:
        return tower.blocks, tower.patch_embed
    if hasattr(inner, "patch_embedder"):
        return inner.encoder.layers, inner.patch_embedder
    return inner.encoder.layer, inner.embeddings


def _attention(spec: ModelSpec, backend: Backend) -> str:
    """Windows and images of any size in one call where flash-attn is there, or torch's kernel; else one call each."""
    is_half = spec.dtype in (torch.bfloat16, torch.float16)
    vision = spec.model.vision
    if vision is not None and (vision.pads_images or vision.separates_tiles):  # a mask, or classes without flash-attn
        return "sdpa"
    return "flash_attention_2" if is_half and "flash_attention_2" in backend.fused_kernels() else "sdpa"


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
