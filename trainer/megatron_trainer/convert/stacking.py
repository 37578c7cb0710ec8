"""Experts stacked in one tensor of a file: read one matrix at a time, and gathered from all ranks to be written.

Which tensors these are and their two forms: families/stacks.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_trainer.convert.source import open_checkpoint
from megatron_trainer.convert.stream import Piece
from megatron_trainer.failure import InvalidInput
from megatron_trainer.models.spec import ModelSpec
from megatron_trainjob.families import FAMILIES
from megatron_trainjob.families.stacks import PARTS, parts_of, stack_of
from megatron_trainjob.families.tensors import DECODER


@dataclass(frozen=True, kw_only=True)
class Stacking:
    """How this model's experts are written. is_exchanged: by kind of stack, whether rows and columns are exchanged.

    interleaves: as in StackForm.
    """

    num_experts: int
    is_exchanged: Mapping[str, bool]
    interleaves: bool = False

    def exchanges(self, name: str) -> bool:
        """Whether the stack of this name has rows and columns exchanged; one of biases has no columns."""
        return self.is_exchanged.get(name.rpartition(".")[2], False)

    def shape(self, name: str, rows: int, *columns: int) -> tuple[int, ...]:
        """The shape of a stack of matrices, or biases, of this size."""
        whole = rows * len(parts_of(name))
        return (self.num_experts, *columns, whole) if self.exchanges(name) else (self.num_experts, whole, *columns)

    def rows_of(self, number: int, rows: int, name: str) -> slice:
        """The rows of an expert's part of the stack that belong to its matrix of this number."""
        return (
            slice(number, None, len(parts_of(name))) if self.interleaves else slice(number * rows, (number + 1) * rows)
        )


def stacking_of(spec: ModelSpec) -> Stacking | None:
    """The stacking of the model: that of its source, else as published; None where experts are stored one by one.

    Matrices that would look the same either way are written as transformers reads them, unexchanged.
    """
    if not FAMILIES[spec.model.family].stacks_experts:
        return None
    form, hidden, width = FAMILIES[spec.model.family].stack_form, spec.model.hidden_size, spec.model.expert_width
    if form.is_exchanged is not None:
        always = dict.fromkeys(PARTS, form.is_exchanged)
        return Stacking(num_experts=spec.model.num_experts, is_exchanged=always, interleaves=form.interleaves)
    forms = {"gate_up_proj": hidden != 2 * width, "down_proj": hidden != width}
    try:
        source = open_checkpoint(spec.directory)
    except InvalidInput:  # a model that was trained from scratch
        return Stacking(num_experts=spec.model.num_experts, is_exchanged=forms)
    if any(stack_of(name) and name not in source.slabs for name in source.files if name.startswith(DECODER)):
        return None
    forms |= {slab.stack.rpartition(".")[2]: slab.is_exchanged for slab in source.slabs.values()}
    return Stacking(num_experts=spec.model.num_experts, is_exchanged=forms)


def stacked_pieces(pieces: Iterable[Piece], stacking: Stacking | None) -> Iterator[Piece]:
    """The pieces with a stack in place of its last matrix on this rank; the first expert-parallel rank has it."""
    waiting: dict[str, int] = {}
    for piece in pieces:
        place = stack_of(piece.name) if stacking else None
        if stacking is None or place is None:
            yield piece
            continue
        stack, *_ = place
        waiting[stack] = waiting.get(stack, _num_local(stack, stacking)) - 1
        if waiting[stack] == 0 and _is_first():
            yield replace(piece, name=stack, shape=stacking.shape(stack, *piece.shape))


def stacked(stream: Iterator[tuple[str, Tensor]], stacking: Stacking | None) -> Iterator[tuple[str, Tensor]]:
    """The stream of tensors in the order of `stacked_pieces`. Collective over expert-parallel ranks."""
    waiting: dict[str, _Filling] = {}
    for name, tensor in stream:
        place = stack_of(name) if stacking else None
        if stacking is None or place is None:
            yield name, tensor
            continue
        stack, expert, number = place
        matrices = _gathered(tensor)
        filling = waiting.setdefault(stack, _Filling(missing=_num_local(stack, stacking)))
        filling.missing -= 1
        if matrices:
            filling.put(matrices, expert, number, stack, stacking)
        if filling.missing == 0:
            whole = waiting.pop(stack).stack
            if whole is not None:
                yield stack, whole


@dataclass(kw_only=True)
class _Filling:
    """A stack of which matrices are missing; on the CPU, and only on the first expert-parallel rank."""

    missing: int
    stack: Tensor | None = field(default=None)

    def put(self, matrices: list[Tensor], expert: int, number: int, name: str, stacking: Stacking) -> None:
        """Takes one matrix of every expert-parallel rank; `expert` is the one of the first."""
        if self.stack is None:
            self.stack = torch.empty(stacking.shape(name, *matrices[0].shape), dtype=matrices[0].dtype)
        span = stacking.rows_of(number, len(matrices[0]), name)
        step = stacking.num_experts // len(matrices)
        for rank, matrix in enumerate(matrices):
            of_expert = self.stack[expert + rank * step]
            (of_expert.t() if stacking.exchanges(name) else of_expert)[span].copy_(matrix)


def _num_local(stack: str, stacking: Stacking) -> int:
    """The matrices of a stack on each rank."""
    experts = stacking.num_experts // parallel_state.get_expert_model_parallel_world_size()
    return int(experts * len(parts_of(stack)))


def _is_first() -> bool:
    return bool(parallel_state.get_expert_model_parallel_rank() == 0)


def _gathered(matrix: Tensor) -> list[Tensor]:
    """The matrices of all expert-parallel ranks on the first, nothing on the others."""
    group = parallel_state.get_expert_model_parallel_group()
    if group.size() == 1:
        return [matrix]
    matrix = matrix.contiguous()
    parts = [torch.empty_like(matrix) for _ in range(group.size())] if _is_first() else None
    dist.gather(matrix, parts, group=group, group_dst=0)
    return parts or []
