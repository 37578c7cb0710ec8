"""Initializes the weights of a model that trains from scratch, identically in every parallel layout.

megatron-core initializes while it builds, so another number of stages or ranks gives another model. Here each tensor of
the checkpoint has its own random state, derived from the seed and its name, and is then sharded like a loaded one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from megatron_trainer.convert import table
from megatron_trainer.convert.rules import RULES
from megatron_trainer.convert.stream import Piece, pieces
from megatron_trainer.convert.table import Entry
from megatron_trainer.models.linear_attention import FASTEST_DECAY
from megatron_trainer.models.spec import ModelSpec
from megatron_trainjob.families.model import Model
from megatron_trainjob.families.vision import is_tower

_INTO_THE_RESIDUAL = ("linear_proj.weight", "linear_fc2.weight", "self_attention.out_proj.weight")
_LAYER_SCALES = (".lambda_1", ".lambda_2")
_STARTS: Mapping[str, float] = {
    **dict.fromkeys(("input_min", "output_min"), -math.inf),
    **dict.fromkeys(("input_max", "output_max"), math.inf),
    **dict.fromkeys(("position_embedding_table", "std_scale"), 1.0),
}
"""Last parts of the names of a tower's tensors that are no matrices -> where they start."""
_SINKS = "self_attn.sinks"
_CLASS = "vision_model.class_embedding"
_SCALES = (".layer_scalar", ".router.scale", ".router.per_expert_scale")
_DECAY, _DECAY_BIAS, _GATED_NORM = "linear_attn.A_log", "linear_attn.dt_bias", "linear_attn.norm.weight"


@torch.no_grad()
def initialize_weights(chunks: Sequence[torch.nn.Module], spec: ModelSpec, *, seed: int) -> None:
    """Fills every parameter of this rank. Not collective.

    Matrices are normal with the model's initializer_range, divided by sqrt(2 * layers) where they add to the residual
    stream (as GPT-2 and Megatron do); norms are one, biases zero, rows of a padded vocabulary zero.
    """
    for entry in table.entries(chunks, spec):
        initialize_weight(entry, spec, seed=seed)


@torch.no_grad()
def initialize_tower(chunks: Sequence[torch.nn.Module], spec: ModelSpec, *, seed: int) -> None:
    """Fills the vision tower of a model that megatron-core initializes; the same on every rank. Not collective."""
    for entry in table.entries(chunks, spec):
        if is_tower(entry.name):
            initialize_weight(entry, spec, seed=seed)


@torch.no_grad()
def initialize_weight(entry: Entry, spec: ModelSpec, *, seed: int) -> None:
    """Fills one parameter of this rank."""
    sizes = table.sizes(spec)
    std = spec.model.init_std
    if entry.name.endswith(_INTO_THE_RESIDUAL):
        std /= math.sqrt(2 * spec.model.num_layers)
    sources = [_drawn(piece, std, seed, spec.model) for piece in pieces(entry, sizes)]
    RULES[entry.rule].blocks(sources, entry.share, sizes).copy_to(entry.parameter)


def _drawn(piece: Piece, std: float, seed: int, model: Model) -> Tensor:
    if model.vision and is_tower(piece.name) and piece.name.endswith(_LAYER_SCALES):
        return torch.full(piece.shape, model.vision.layer_scale)
    if is_tower(piece.name) and (start := _STARTS.get(piece.name.rpartition(".")[2])) is not None:
        return torch.full(piece.shape, start)
    if len(piece.shape) == 1 and not piece.name.endswith((_DECAY, _SINKS, _CLASS)):
        is_one = piece.name.endswith(_GATED_NORM if model.zero_centered_norms else ".weight")
        return torch.full(piece.shape, float(is_one or piece.name.endswith((_DECAY_BIAS, *_SCALES))))
    digest = hashlib.sha256(f"{seed}/{piece.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
    if piece.name.endswith(_DECAY):
        return torch.empty(piece.shape).uniform_(*FASTEST_DECAY, generator=generator).log_()
    return torch.empty(piece.shape).normal_(0.0, std, generator=generator)
