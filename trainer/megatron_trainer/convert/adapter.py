"""Adapters as PEFT directories: what peft, vLLM and transformers load, and what this trainer loads back.

Megatron fuses q, k, v and gate, up into one linear with one A and one B. Written out, each part gets the same A and
its rows of B, which is the same function. On loading, parts that share their A become one adapter of the same rank, and
parts with separate A one adapter of the sum of their ranks.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from megatron_trainer.convert import companions, peft_format, stacked_adapter, table
from megatron_trainer.convert.adapter_source import AdapterSource, open_adapter
from megatron_trainer.convert.companions import Companions
from megatron_trainer.convert.peft_format import HALVES
from megatron_trainer.convert.publish import publish
from megatron_trainer.convert.rules import RULES, Share, Sizes, Source
from megatron_trainer.convert.stream import pieces, takes_part
from megatron_trainer.convert.table import Entry
from megatron_trainer.failure import InvalidInput
from megatron_trainer.lora import agree
from megatron_trainer.lora.adapter import Pair, adapted_modules, adapter_of
from megatron_trainer.megatron.marks import split_dim
from megatron_trainer.models.spec import ModelSpec
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.families import FAMILIES
from megatron_trainjob.families.vision import Names, is_fixed, is_tower
from megatron_trainjob.violation import Violation

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Adapted:
    """A weight of the base with its adapter; modules: its Hugging Face modules, in the rule's order."""

    entry: Entry
    pair: Pair

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(name.removesuffix(".weight") for name in self.entry.names)

    def share(self, half: Tensor) -> Share:
        """This rank's part of A or B."""
        group = self.entry.group
        return Share(rank=group.rank(), size=group.size(), dim=split_dim(half))


def check_loadable(chunks: Sequence[torch.nn.Module], spec: ModelSpec, args: TrainArgs) -> None:
    """Returns if peft can load every adapter, or if the run ends in a merged model. Collective.

    Raises InvalidInput, before anything is trained.
    """
    problem = _not_loadable(agree.union(m for one in _adapted(chunks, spec) for m in one.modules), spec)
    whole = _whole_experts(agree.union(_modules_to_save(chunks, spec)), spec)
    if args.merge_lora or not (problem or whole):
        return
    argument = "modules_to_save" if whole else "target_modules" if args.target_regex is None else "target_regex"
    remedy = "name other modules" if whole else "omit either kind"
    message = f"{whole or problem}; set merge_lora: true to get the whole model, or {remedy}"
    raise InvalidInput((Violation(path=f"spec.args.{argument}", value=getattr(args, argument), message=message),))


def _whole_experts(saved: frozenset[str], spec: ModelSpec) -> str:
    """What peft cannot store of experts that train in full, if they are stored in stacks."""
    stacks = FAMILIES[spec.model.family].stacks_experts
    kinds = sorted({peft_format.layer_of(name) for name in saved if stacks and ".experts." in name})
    return f"peft cannot keep {', '.join(kinds)} beside adapters, parts of a tensor of all experts" if kinds else ""


def _not_loadable(adapted: frozenset[str], spec: ModelSpec) -> str:
    """What peft would make of these adapters, if it would not load all of them."""
    if not FAMILIES[spec.model.family].stacks_experts:
        return ""
    partly = stacked_adapter.partly_adapted(adapted, spec.model.num_experts)
    kinds = ", ".join(sorted({peft_format.layer_of(name) for name in partly}))
    return f"peft adapts all experts of a layer or none, and of {kinds} only some are adapted" if kinds else ""


def save_adapter(
    chunks: Sequence[torch.nn.Module],
    spec: ModelSpec,
    args: TrainArgs,
    directory: Path,
    *,
    keeps_others: bool = False,
    door: Path | None = None,
    changed: Companions | None = None,
) -> None:
    """Writes adapter_config.json and adapter_model.safetensors. Collective.

    Each rank that gathers tensors writes them to a temporary file; the first rank merges these into one. An existing
    directory is replaced; keeps_others, door: as for publish. changed: files that training has changed, written too.

    Raises:
        TrainingError: OUTPUT_NOT_WRITABLE, on all ranks, when any rank could not write.
    """
    adapted = agree.union(module for one in _adapted(chunks, spec) for module in one.modules)
    every = agree.union(
        name.rsplit(".", 1)[0]
        for entry in table.entries(chunks, spec)
        for name in entry.names
        if not is_fixed(entry.name)
    )
    saved = agree.union(_modules_to_save(chunks, spec))
    if problem := _not_loadable(adapted, spec):
        logger.warning("%s; vLLM loads them", problem)
    width = max(map(int, agree.union(str(one.pair.rank) for one in _adapted(chunks, spec))), default=args.lora_rank)
    config = _config(spec, args, width, adapted, every, saved)
    mine = {key: tensor.to("cpu", copy=True).contiguous() for key, tensor in _gathered(chunks, spec, adapted, width)}

    def write_part(aside: Path) -> None:
        if mine:
            save_file(mine, aside / f"part-{dist.get_rank():05d}.safetensors")

    def write_whole(aside: Path) -> None:
        if dist.get_rank() == 0:
            _join_parts(aside, partial(_as_stored, spec=spec, args=args))
            (aside / peft_format.CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
            if changed is not None:
                companions.write_beside_adapter(aside, spec, changed)

    publish(Path(directory), [write_part, write_whole], keeps_others=keeps_others, door=door)


def _config(
    spec: ModelSpec,
    args: TrainArgs,
    width: int,
    adapted: frozenset[str],
    every: frozenset[str],
    saved: frozenset[str],
) -> dict[str, object]:
    """The content of adapter_config.json. width: of the widest adapter. every: all modules with weights."""
    in_model = partial(peft_format.in_model, names=_object_names(spec))
    make = partial(
        peft_format.config,
        args,
        rank=width,
        base_model=str(spec.directory),
        modules_to_save=map(in_model, _whole_tower(saved, every, spec)),
    )
    known = every | _around_linears(every)
    if not FAMILIES[spec.model.family].stacks_experts:
        return make(frozenset(map(in_model, adapted)), frozenset(map(in_model, known)))
    as_parameters = stacked_adapter.parameters(every)
    of_adapted = {name: parameter for name, parameter in as_parameters.items() if name in adapted}
    modules, others = (frozenset(map(in_model, names - as_parameters.keys())) for names in (adapted, known))
    parameters, further = (frozenset(map(in_model, names.values())) for names in (of_adapted, as_parameters))
    return make(modules, others, target_parameters=stacked_adapter.target_parameters(parameters, further))


def _around_linears(every: frozenset[str]) -> frozenset[str]:
    """The modules of a tower that hold a linear and have a name that linears have elsewhere, which peft would match."""
    return frozenset(name.rsplit(".", 1)[0] for name in every if is_tower(name) and name.endswith(".linear"))


def _object_names(spec: ModelSpec) -> Names:
    """How transformers' object names the parts of a model with a tower; () for a text model."""
    return FAMILIES[spec.model.family].object_names if spec.model.vision else ()


def _whole_tower(saved: frozenset[str], every: frozenset[str], spec: ModelSpec) -> frozenset[str]:
    """The modules trained in full, with the tower as the modules that make it up if all of it is."""
    of_tower = frozenset(filter(is_tower, every))
    if spec.model.vision is None or not of_tower <= saved:
        return saved
    return frozenset({*spec.model.vision.modules, *(saved - of_tower)})


def _as_stored(tensors: Mapping[str, Tensor], *, spec: ModelSpec, args: TrainArgs) -> dict[str, Tensor]:
    """The tensors by the names that peft has for them, with those of stacked experts in one."""
    if FAMILIES[spec.model.family].stacks_experts:
        tensors = stacked_adapter.stacked(tensors, spec.model.num_experts, FAMILIES[spec.model.family].stack_form)
    named = partial(peft_format.in_model, names=_object_names(spec))
    if args.task_type == "embedding":
        named = partial(peft_format.below_decoder)
    return {named(key): tensor for key, tensor in tensors.items()}


@torch.no_grad()
def load_adapter(chunks: Sequence[torch.nn.Module], spec: ModelSpec, args: TrainArgs, directory: Path) -> None:
    """Fills the adapters, and all other trainable parameters, from a PEFT directory. Collective.

    add_adapters must have been called with the arguments that the directory was made with, and adapter_modules.parts.

    Raises:
        InvalidInput: there is no adapter (MISSING_INPUT), or its kind, rank, scale or modules differ (BAD_ARGUMENTS).
        The same on all ranks.
    """
    source = open_adapter(Path(directory), FAMILIES[spec.model.family].stack_form)
    peft_format.check(source.config, args, str(directory))
    sizes = table.sizes(spec)
    adapted = agree.union(module for one in _adapted(chunks, spec) for module in one.modules)
    for one in _adapted(chunks, spec):
        _load_pair(one, source, sizes)
    for entry in _stored_in_full(chunks, spec):
        names = _names(entry, spec)
        keys = [peft_format.full_key(name, adapted) for name in names]
        if stored := source.tensors(keys):
            share = RULES[entry.rule].shard(stored[: len(entry.names)], entry.share, sizes)
            source.fill(entry.parameter, share, keys)
    source.judge()


def _adapted(chunks: Sequence[torch.nn.Module], spec: ModelSpec) -> Iterator[_Adapted]:
    """The adapted weights of this rank, in model order."""
    pairs = {id(pair.weight): pair for module in adapted_modules(chunks) for pair in adapter_of(module).pairs(module)}
    for entry in table.entries(chunks, spec):
        if pair := pairs.get(id(entry.parameter)):
            yield _Adapted(entry=entry, pair=pair)


def _trained_in_full(chunks: Sequence[torch.nn.Module], spec: ModelSpec) -> Iterator[Entry]:
    for entry in table.entries(chunks, spec):
        if entry.parameter.requires_grad:
            yield entry


def _stored_in_full(chunks: Sequence[torch.nn.Module], spec: ModelSpec) -> Iterator[Entry]:
    """Those that train in full, and of a tower that does what never trains: peft reads all of a module it saves."""
    of_tower = [entry for entry in table.entries(chunks, spec) if is_tower(entry.name)]
    is_whole = all(entry.parameter.requires_grad or is_fixed(entry.name) for entry in of_tower)
    yield from _trained_in_full(chunks, spec)
    yield from (entry for entry in of_tower if is_whole and is_fixed(entry.name))


def _modules_to_save(chunks: Sequence[torch.nn.Module], spec: ModelSpec) -> Iterator[str]:
    """Full names of modules trained in full: PEFT matches the end of a name, and many names end in `norm`.

    A module of which only the bias trains is not one of them; PEFT's own `bias` setting covers it.
    """
    for entry in _trained_in_full(chunks, spec):
        for name in _names(entry, spec):
            module, own_name = name.rsplit(".", 1)
            if own_name != "bias":
                yield module


def _names(entry: Entry, spec: ModelSpec) -> tuple[str, ...]:
    """The checkpoint names of a parameter; PEFT stores trained tied embeddings as two separate copies."""
    if spec.tied and entry.name == "embedding.word_embeddings.weight":
        return (*entry.names, "lm_head.weight")
    return entry.names


@torch.no_grad()
def _gathered(
    chunks: Sequence[torch.nn.Module], spec: ModelSpec, adapted_names: frozenset[str], width: int
) -> Iterator[tuple[str, Tensor]]:
    """(key, whole tensor) of everything that this rank writes. Collective over the ranks that share a weight."""
    sizes = table.sizes(spec)
    for one in _adapted(chunks, spec):
        if takes_part(one.entry):
            yield from ((key, _widened(key, half, width)) for key, half in _halves(one, sizes))
    for entry in _stored_in_full(chunks, spec):
        if not takes_part(entry) or entry.is_copy:
            continue
        shares = _shares(entry.parameter, entry.share, entry.group)
        if shares:
            tensors = RULES[entry.rule].unshard(shares, entry.dim, sizes)
            names = _names(entry, spec)
            for name, tensor in zip(names, tensors * len(names), strict=False):
                yield peft_format.full_key(name, adapted_names), tensor


def _halves(one: _Adapted, sizes: Sizes) -> Iterator[tuple[str, Tensor]]:
    a, b = one.pair.a, one.pair.b
    a_shares, b_shares = (_shares(half, one.share(half), one.entry.group) for half in (a, b))
    if not a_shares:
        return
    (whole_a,) = RULES["plain"].unshard(a_shares, one.share(a).dim, sizes)
    if one.pair.transposed:
        yield peft_format.half_key(one.modules[0], "A", is_embedding=True), whole_a[:, : sizes.vocab_size]
        yield peft_format.half_key(one.modules[0], "B", is_embedding=True), b_shares[0]
        return
    parts = RULES[one.entry.rule].unshard(b_shares, one.share(b).dim, sizes)
    for module, part in zip(one.modules, parts, strict=True):
        yield peft_format.half_key(module, "A", is_embedding=False), whole_a
        yield peft_format.half_key(module, "B", is_embedding=False), part


def _widened(key: str, half: Tensor, width: int) -> Tensor:
    """A padded with zero rows, or B with zero columns, to the largest rank of the run: serving expects one rank."""
    missing = width - half.shape[0 if "_A" in key else 1]
    pad = (0, 0, 0, missing) if "_A" in key else (0, missing)
    return torch.nn.functional.pad(half, pad) if missing else half


def _load_pair(one: _Adapted, source: AdapterSource, sizes: Sizes) -> None:
    if one.pair.transposed:
        _load_table(one, source, sizes)
        return
    keys = {half: [peft_format.half_key(module, half, is_embedding=False) for module in one.modules] for half in HALVES}
    stored_a, stored_b = (source.present(keys[half]) for half in HALVES)
    if not stored_a or stored_a.keys() != stored_b.keys():
        source.missing.update(key for half in HALVES for key in keys[half])
        return
    rank = next(iter(stored_a.values())).shape[0]
    width = one.pair.a.shape[0]
    if width not in (rank, rank * len(one.modules)) or any(b.shape[1] != rank for b in stored_b.values()):
        source.different.add(f"{peft_format.layer_of(keys['A'][0])} with rank {rank}")
        return
    if width == rank and source.shared([keys["A"][number] for number in stored_a]) == []:
        return
    whole_a = _side_by_side(one, stored_a, rank, sizes)
    rows = [piece.shape[0] for piece in pieces(one.entry, sizes)]
    whole_b = [torch.zeros(size, width) for size in rows]
    for number, b in stored_b.items():
        first = number * rank if width > rank else 0
        if b.shape[0] == rows[number]:
            whole_b[number][:, first : first + rank] = b[:]
        else:
            source.different.add(f"{peft_format.layer_of(keys['B'][number])} with shape {list(b.shape)}")
    source.fill(one.pair.a, RULES["plain"].shard([whole_a], one.share(one.pair.a), sizes), keys["A"])
    source.fill(one.pair.b, RULES[one.entry.rule].shard(whole_b, one.share(one.pair.b), sizes), keys["B"])


def _side_by_side(one: _Adapted, stored_a: Mapping[int, Source], rank: int, sizes: Sizes) -> Tensor:
    """The whole A: the common one, or those of all linears stacked; a linear without an adapter gets random rows.

    Random, not zero: with B at zero, a zero A would never train.
    """
    first = next(iter(stored_a.values()))[:]
    if one.pair.a.shape[0] == rank:
        return first
    missing = torch.nn.init.kaiming_uniform_(
        torch.empty(first.shape), a=math.sqrt(5), generator=torch.Generator().manual_seed(len(one.entry.name))
    )
    blocks = [stored_a[number][:] if number in stored_a else missing for number in range(len(one.modules))]
    return torch.cat([block.to(first.dtype) for block in blocks])


def _load_table(one: _Adapted, source: AdapterSource, sizes: Sizes) -> None:
    """A of an embedding has one column per token, but the rule for tables expects rows."""
    a_keys, b_keys = ([peft_format.half_key(m, half, is_embedding=True) for m in one.modules] for half in ("A", "B"))
    stored_a, stored_b = source.shared(a_keys), source.tensors(b_keys)
    if not stored_a or not stored_b:
        return
    a, b = one.pair.a, one.pair.b
    source.fill(a, RULES["vocabulary"].shard([stored_a[0][:].t()], one.share(a), sizes).t(), a_keys)
    source.fill(b, stored_b[0][:], b_keys)


def _shares(tensor: Tensor, share: Share, group: dist.ProcessGroup) -> list[Tensor]:
    """All ranks' parts on the group's first rank, in rank order; nothing on the others."""
    is_first = group.rank() == 0
    if share.dim is None or share.size == 1:
        return [tensor] if is_first else []
    parts = [torch.empty_like(tensor) for _ in range(share.size)]
    dist.all_gather(parts, tensor.contiguous(), group=group)
    return parts if is_first else []


def _join_parts(aside: Path, as_stored: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]) -> None:
    tensors: dict[str, Tensor] = {}
    parts = sorted(aside.glob("part-*.safetensors"))
    for part in parts:
        with safe_open(part, framework="pt") as file:
            tensors.update({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118 - no mapping
    weights = aside / peft_format.WEIGHTS_FILE
    save_file(dict(as_stored(tensors)), weights, metadata={"format": "pt"})
    weights.chmod(aside.stat().st_mode & 0o666)  # safetensors makes it readable by its owner only
    for part in parts:
        part.unlink()
