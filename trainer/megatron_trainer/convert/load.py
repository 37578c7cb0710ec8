"""Loads a Hugging Face checkpoint into the shards of this rank, slice by slice: the model is never held whole."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_trainer.convert import table
from megatron_trainer.convert.initialize import initialize_weight
from megatron_trainer.convert.rules import RULES, Sizes
from megatron_trainer.convert.source import Checkpoint, open_checkpoint
from megatron_trainer.convert.table import Entry
from megatron_trainer.failure import InvalidInput
from megatron_trainer.models.spec import ModelSpec
from megatron_trainjob.exit_codes import ExitCode
from megatron_trainjob.families import shapes, tensors
from megatron_trainjob.families.weights import SCORES
from megatron_trainjob.violation import Violation

logger = logging.getLogger(__name__)

_EMBEDDING, _OUTPUT = shapes.VOCABULARY
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True)
class _Findings:
    """The findings of one rank: all requested names, the missing ones, and descriptions of tensors of another shape."""

    wanted: frozenset[str]
    missing: frozenset[str]
    misshapen: tuple[str, ...]


@torch.no_grad()
def load_weights(chunks: Sequence[torch.nn.Module], spec: ModelSpec) -> None:
    """Fills every parameter of this rank from spec.directory, converted to the parameter's type. Collective.

    Raises:
        InvalidInput: tensors are missing, left over or have another shape than in the model; all are named, on all
        ranks.
    """
    checkpoint = open_checkpoint(spec.directory)
    if spec.tied and tensors.is_output_alone(checkpoint.files):
        checkpoint = checkpoint.with_name(_EMBEDDING, _OUTPUT)
    sizes, wanted_shapes = table.sizes(spec), shapes.shapes(spec.model, has_scores=spec.head is not None)
    wanted: set[str] = set()
    missing: set[str] = set()
    misshapen: list[str] = []
    for entry in table.entries(chunks, spec):
        wanted.update(entry.names)
        if _is_new_head(entry, checkpoint, spec):
            continue
        absent = [name for name in entry.names if name not in checkpoint.files]
        missing.update(absent)
        problems = [] if absent else _misfits(entry, checkpoint, wanted_shapes) or _fill(entry, checkpoint, sizes)
        misshapen += problems or _other_output(entry, checkpoint, spec)
        if not absent and not problems:
            _tell_other_copies(entry, checkpoint, spec.directory)
    found = _Findings(wanted=frozenset(wanted), missing=frozenset(missing), misshapen=tuple(misshapen))
    _judge(_everywhere(found), checkpoint, spec)


def _is_new_head(entry: Entry, checkpoint: Checkpoint, spec: ModelSpec) -> bool:
    """Whether the checkpoint lacks this head; it is then initialized, identically in every layout."""
    if spec.head is None or entry.names != SCORES.names or SCORES.names[0] in checkpoint.files:
        return False
    logger.info("%s has no %s: it is initialized at random (seed %d)", spec.directory, SCORES.names[0], spec.head.seed)
    initialize_weight(entry, spec, seed=spec.head.seed)
    return True


def _misfits(entry: Entry, checkpoint: Checkpoint, wanted: Mapping[str, shapes.Shape]) -> list[str]:
    """Problems with the shapes of an entry's tensors, because a rule might cut or pad them silently."""
    names = [name for name in entry.names if name in checkpoint.files]
    found = (
        shapes.problem(name, checkpoint.tensor(name).shape, wanted) or checkpoint.grid_problem(name) for name in names
    )
    return [each for each in found if each]


def _other_output(entry: Entry, checkpoint: Checkpoint, spec: ModelSpec) -> list[str]:
    """Problems with an output layer that is stored beside the embedding it is tied to; an equal copy is allowed.

    The first rank compares them for all.
    """
    is_first = dist.get_rank() == 0 and entry.names == (_EMBEDDING,)
    if not (spec.tied and is_first) or not {_EMBEDDING, _OUTPUT} <= checkpoint.files.keys():
        return []
    return [] if _are_equal(_EMBEDDING, _OUTPUT, checkpoint) else [shapes.OTHER_OUTPUT]


def _tell_other_copies(entry: Entry, checkpoint: Checkpoint, directory: Path) -> None:
    """Warns of copies in multi-token-prediction layers that are none: those layers share the tensor here."""
    for copy in entry.copies if dist.get_rank() == 0 else ():
        if copy in checkpoint.files and not _are_equal(entry.names[0], copy, checkpoint):
            logger.warning("%s: %s differs from %s, which is used in its place", directory, copy, entry.names[0])


def _are_equal(one: str, other: str, checkpoint: Checkpoint) -> bool:
    """Whether two tensors of a checkpoint have the same values."""
    first, second = checkpoint.tensor(one), checkpoint.tensor(other)
    rows = range(0, first.shape[0], _ROWS_AT_ONCE)
    return tuple(first.shape) == tuple(second.shape) and all(
        torch.equal(first[row : row + _ROWS_AT_ONCE], second[row : row + _ROWS_AT_ONCE]) for row in rows
    )


def _fill(entry: Entry, checkpoint: Checkpoint, sizes: Sizes) -> list[str]:
    """Reads this rank's shard into the parameter; returns the problems if the shapes do not fit."""
    sources = [checkpoint.tensor(name) for name in entry.names]
    needed = list(entry.parameter.shape)
    stored = " and ".join(f"{name} {list(source.shape)}" for name, source in zip(entry.names, sources, strict=True))
    try:
        share = RULES[entry.rule].blocks(sources, entry.share, sizes)
        fits = share.shape == entry.parameter.shape
    except (ValueError, IndexError, RuntimeError) as err:
        return [f"{stored} for {entry.name} {needed} ({err})"]
    if not fits:
        return [f"{stored}, of which a rank needs {needed}"]
    share.copy_to(entry.parameter)
    return []


def _everywhere(found: _Findings) -> _Findings:
    """The combined findings of all ranks."""
    every: list[_Findings] = [found] * dist.get_world_size()
    dist.all_gather_object(every, found)
    return _Findings(
        wanted=frozenset().union(*(one.wanted for one in every)),
        missing=frozenset().union(*(one.missing for one in every)),
        misshapen=tuple(sorted({text for one in every for text in one.misshapen})),
    )


def _judge(found: _Findings, checkpoint: Checkpoint, spec: ModelSpec) -> None:
    left_over = sorted(name for name in checkpoint.files if name not in found.wanted and not may_be_left(name, spec))
    problems = [
        _violation(spec.directory, names, message)
        for names, message in (
            (sorted(found.missing), tensors.MISSING),
            (list(found.misshapen), shapes.OTHER),
            (left_over, tensors.LEFT_OVER),
        )
        if names
    ]
    if problems:
        raise InvalidInput(tuple(problems), ExitCode.MISSING_INPUT)


def may_be_left(name: str, spec: ModelSpec) -> bool:
    """Whether a tensor of the checkpoint may be left unread: known leftovers, and an output layer that is tied or
    replaced by a head.
    """
    return tensors.may_be_left(name, spec.model, ties=spec.tied or spec.head is not None)


def _violation(directory: Path, names: list[str], message: str) -> Violation:
    return Violation(path="spec.args.model", value=str(directory), message=tensors.described(names, message))
