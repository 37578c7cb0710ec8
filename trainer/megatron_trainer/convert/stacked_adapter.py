"""Adapters of experts that a model stores in stacks: peft adapts the stack as one parameter, here each expert has one.

With rank r and E experts, peft's A of a stack is [E * r, inputs], expert after expert, and its B [outputs, r * E], the
experts of each rank side by side. Gate and up share their A, as one linear has it here. peft nests what it puts around
the parameters of one module: that of gate_up_proj is inside (`base_layer`) where down_proj has an adapter too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from megatron_trainer.convert.peft_format import HALVES, Half
from megatron_trainjob.families.stacks import PARTS, StackForm, parts_of, stack_of

_INNER = "base_layer"
_BLOCKS = (".mlp.", ".feed_forward.", ".experts.")
_ROUTERS = (".mlp.gate", ".mlp.router", ".feed_forward.router")


def parameters(modules: Iterable[str]) -> dict[str, str]:
    """Those of the modules for which peft adapts a parameter -> that parameter: experts and routers."""
    found: dict[str, str] = {}
    for module in modules:
        place = stack_of(f"{module}.weight")
        if place is not None:
            found[module] = place[0]
        elif module.endswith(_ROUTERS):
            found[module] = f"{module}.weight"
    return found


def target_parameters(adapted: frozenset[str], every: frozenset[str]) -> frozenset[str]:
    """The shortest target_parameters that select exactly these parameters. every: of all layers."""
    kind = {name: name[next(name.find(block) for block in _BLOCKS if block in name) + 1 :] for name in every}
    partly = {kind[name] for name in every - adapted}
    return frozenset(name if kind[name] in partly else kind[name] for name in adapted)


def partly_adapted(adapted: Iterable[str], num_experts: int) -> list[str]:
    """The stacks of which only some matrices have adapters, which peft cannot express."""
    matrices: dict[str, int] = {}
    for module in adapted:
        if (place := stack_of(f"{module}.weight")) is not None:
            matrices[place[0]] = matrices.get(place[0], 0) + 1
    return sorted(stack for stack, number in matrices.items() if number < num_experts * len(parts_of(stack)))


def stacked(tensors: Mapping[str, Tensor], num_experts: int, form: StackForm) -> dict[str, Tensor]:
    """The adapter's tensors with those of all experts of a layer in one, as peft names them.

    Where only some matrices of a stack have adapters, these stay apart. tensors: by the keys of single experts, in the
    names of weight tables. form: that of the model's stacks.
    """
    found = dict(tensors)
    adapted = {key.partition(".lora_")[0] for key in tensors if ".lora_" in key}
    stacks = {place[0] for key in tensors if (place := _place(key)) is not None}
    stacks -= set(partly_adapted(adapted, num_experts))
    for stack in stacks:
        owner = stack.rpartition(".")[0]
        both = {f"{owner}.{kind}" for kind in PARTS} <= stacks
        holder = owner if not both or stack.endswith("down_proj") else f"{owner}.{_INNER}"
        halves: dict[Half, list[list[Tensor]]] = {
            half: [
                [found.pop(f"{owner}.{expert}.{part}.lora_{half}.weight") for part in parts_of(stack)]
                for expert in range(num_experts)
            ]
            for half in HALVES
        }
        first = [each[0] for each in halves["A"]]
        second = [_joined(each, interleaves=form.interleaves) for each in halves["B"]]
        if form.exchanges_adapters:
            first, second = [each.t() for each in second], [each.t() for each in first]
        found[f"{holder}.lora_A.weight"] = torch.cat(first).contiguous()
        found[f"{holder}.lora_B.weight"] = torch.stack(second, dim=-1).flatten(1).contiguous()
    return found


def _joined(matrices: list[Tensor], *, interleaves: bool) -> Tensor:
    """The rows of an expert's part of a stack: matrix over matrix, or in turn."""
    return torch.stack(matrices, dim=1).flatten(0, 1) if interleaves else torch.cat(matrices)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A or B of one matrix of an expert within peft's tensor, whose key is given.

    stored: which half peft takes it for. interleaves: as in StackForm.
    """

    key: str
    half: Half
    stored: Half
    rank: int
    expert: int
    number: int
    parts: int
    interleaves: bool

    def of(self, whole: Tensor) -> Tensor:
        """The matrix's own part of peft's tensor."""
        if self.stored == "A":
            of_expert = whole[self.expert * self.rank : (self.expert + 1) * self.rank]
        else:
            of_expert = whole.reshape(len(whole), self.rank, -1)[..., self.expert]
        if self.stored != self.half:
            of_expert = of_expert.t()
        if self.half == "A":
            return of_expert.contiguous()
        if self.interleaves:
            return of_expert[self.number :: self.parts].contiguous()
        rows = len(of_expert) // self.parts
        return of_expert[self.number * rows : (self.number + 1) * rows].contiguous()


def parts(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], form: StackForm) -> dict[str, Part]:
    """By the keys of single experts, what peft's tensors of stacks hold. shapes: of all tensors by key, in the names of
    weight tables. config: adapter_config.json. form: that of the model's stacks.
    """
    rank, named = config.get("r"), config.get("target_parameters")
    if not isinstance(rank, int) or rank < 1:  # refused where the configuration is checked
        return {}
    targets = [str(name) for name in named] if isinstance(named, list) else []
    found: dict[str, Part] = {}
    for key, shape in shapes.items():
        for kind in _kinds(key, shapes, targets) if len(shape) == 2 and 0 not in shape else ():
            owner = key.partition(".lora_")[0].removesuffix(f".{_INNER}")
            stored: Half = "A" if ".lora_A" in key else "B"
            half = HALVES[HALVES.index(stored) - 1] if form.exchanges_adapters else stored
            whole = shape[0 if stored == "A" else 1]
            make = partial(Part, key=key, half=half, stored=stored, rank=rank, parts=len(PARTS[kind]))
            make = partial(make, interleaves=form.interleaves)
            found |= dict(_split(make, owner, kind, half, whole // rank if whole % rank == 0 else 0))
    return found


def _split(
    make: Callable[..., Part], owner: str, kind: str, half: Half, num_experts: int
) -> Iterator[tuple[str, Part]]:
    for expert in range(num_experts):
        for number, part in enumerate(PARTS[kind]):
            place = make(expert=expert, number=number)
            yield f"{owner}.{expert}.{part}.lora_{half}.weight", place


def _kinds(key: str, shapes: Mapping[str, tuple[int, ...]], targets: Iterable[str]) -> list[str]:
    """The kind of stack to which peft's tensor belongs, in a list; empty for other tensors."""
    owner, _, half = key.partition(".lora_")
    if owner.endswith(f".experts.{_INNER}"):
        return ["gate_up_proj"]
    if not owner.endswith(".experts"):
        return []
    if f"{owner}.{_INNER}.lora_{half}" in shapes:
        return ["down_proj"]
    return [kind for kind in PARTS if any(name.endswith(kind) for name in targets)][:1]


def _place(key: str) -> tuple[str, int, int] | None:
    """As stack_of, for the key of A or B of a single expert."""
    module, found, _ = key.partition(".lora_")
    return stack_of(f"{module}.weight") if found else None
