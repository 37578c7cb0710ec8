"""Names of modules and parameters that are the same in every parallel layout.

Megatron counts layers from zero on each pipeline stage and experts from zero on each expert rank; a name must select
the same weights however the model is sharded, so both are numbered over the whole model here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from megatron_trainjob.families.vision import BOUNDS, SCALES

_LAYER = re.compile(r"^(decoder\.layers)\.(\d+)(?=\.|$)")
_FURTHER = re.compile(r"^mtp\.layers\.(\d+)(\.mtp_model_layer(?=\.|$))?(?=\.|$)")
_EXPERT = re.compile(r"(\.local_experts)\.(\d+)(?=\.|$)")
TIED_OUTPUT = "output_layer.weight"
WORD_EMBEDDINGS = "embedding.word_embeddings.weight"
# TransformerEngine fuses each norm into the linear after it and keeps experts in one module. The weight tables
# use the names of megatron-core's local layers; these convert the names.
_LOCAL_NAMES = (
    (re.compile(r"\.self_attention\.linear_qkv\.layer_norm_weight$"), ".input_layernorm.weight"),
    (re.compile(r"\.mlp\.linear_fc1\.layer_norm_weight$"), ".pre_mlp_layernorm.weight"),
    (re.compile(r"\.linear_q_up_proj\.layer_norm_weight$"), ".q_layernorm.weight"),
    (re.compile(r"\.linear_kv_up_proj\.layer_norm_weight$"), ".kv_layernorm.weight"),
    (re.compile(r"\.experts\.(linear_fc[12])\.(weight|bias)(\d+)$"), r".experts.local_experts.\3.\1.\2"),
)
_BUFFERS = ("expert_bias", "layer_scale", *(f".{name}" for name in (*BOUNDS, *SCALES)))
"""Buffers that are weights of the checkpoint; named_parameters does not include them."""


def unwrapped(chunk: torch.nn.Module) -> GPTModel:
    """The language model itself, without the wrappers for data parallelism and mixed precision."""
    model: GPTModel = chunk
    while hasattr(model, "module"):
        model = model.module
    return model


def whole_model_name(chunk: GPTModel, name: str) -> str:
    """`decoder.layers.0...` of the second of two stages of four layers each -> `decoder.layers.4...`.

    The copy of tied word embeddings that the last stage keeps as its output layer goes by the embedding's name, and
    multi-token-prediction layers are numbered after the last layer, as in checkpoints.
    """
    if name == TIED_OUTPUT and chunk.share_embeddings_and_output_weights:
        return WORD_EMBEDDINGS
    if (further := _FURTHER.match(name)) is not None:
        number, rest = chunk.config.num_layers + int(further[1]), name[further.end() :]
    elif (layer := _LAYER.match(name)) is not None:
        number, rest = chunk.decoder.layers[int(layer[2])].layer_number - 1, name[layer.end() :]
    else:
        return name
    return _EXPERT.sub(lambda match: _whole_expert(chunk, match), f"decoder.layers.{number}{rest}")


def _whole_expert(chunk: GPTModel, match: re.Match[str]) -> str:
    num_local = chunk.config.num_moe_experts // parallel_state.get_expert_model_parallel_world_size()
    first = parallel_state.get_expert_model_parallel_rank() * num_local
    return f"{match[1]}.{first + int(match[2])}"


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter and not to the base model."""
    return ".lora." in name


def named_parameters(chunks: Sequence[torch.nn.Module]) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Every parameter of this rank under its whole-model name, in model order."""
    for chunk in map(unwrapped, chunks):
        for name, parameter in chunk.named_parameters():
            yield whole_model_name(chunk, name), parameter


def named_weights(chunk: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters of a chunk by its own names, without adapters, and the buffers that are weights."""
    yield from ((name, p) for name, p in chunk.named_parameters() if not is_adapter(name))
    yield from ((name, b) for name, b in chunk.named_buffers() if name.endswith(_BUFFERS))


def canonical(name: str) -> str:
    """The name of this parameter in the local implementation."""
    for pattern, replacement in _LOCAL_NAMES:
        name = pattern.sub(replacement, name)
    return name


def named_modules(chunks: Sequence[torch.nn.Module]) -> Iterator[tuple[str, torch.nn.Module]]:
    """Every module of this rank under its whole-model name, in model order, without the model itself."""
    for chunk in map(unwrapped, chunks):
        for name, module in chunk.named_modules():
            if name:
                yield whole_model_name(chunk, name), module
