"""Writes a model as a Hugging Face directory: every rank writes the tensors it gathers, rank 0 the index and the rest.

Written to a temporary folder and renamed, so that a directory under its final name is complete. Requires a file system
shared by all ranks.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_trainer.convert import companions, quantize, table
from megatron_trainer.convert.companions import Companions
from megatron_trainer.convert.dequantize import Dequantized
from megatron_trainer.convert.publish import Alone, on_first_rank, publish
from megatron_trainer.convert.rules import Sizes, Source
from megatron_trainer.convert.safetensors_file import SafetensorsFile, num_bytes
from megatron_trainer.convert.source import StackedMatrix, open_checkpoint
from megatron_trainer.convert.stacking import Stacking, stacked, stacked_pieces, stacking_of
from megatron_trainer.convert.stream import (
    Piece,
    Read,
    exported,
    none,
    own_data,
    pieces,
    tensors,
    writes,
    written_pieces,
)
from megatron_trainer.convert.table import Entry
from megatron_trainer.models.spec import ModelSpec
from megatron_trainjob.families import FAMILIES
from megatron_trainjob.families.weights import outside, untrained_predictions
from megatron_trainjob.weight_files import INDEX_FILE, SINGLE_FILE

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_KEPT_WIDE = ("e_score_correction_bias",)
"""Tensors that keep their type: the selection bias of experts changes by less than bfloat16 can resolve."""
_UNCHANGED = Companions()


@dataclass(frozen=True, kw_only=True)
class _File:
    """One file that this rank writes."""

    name: str
    pieces: tuple[Piece, ...]


def save_model(
    chunks: Sequence[torch.nn.Module],
    spec: ModelSpec,
    directory: Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: str = "5GB",
    read: Read = own_data,
    keeps_others: bool = False,
    changed: Companions = _UNCHANGED,
    door: Path | None = None,
    in_fp8: bool = False,
) -> None:
    """Writes weights, config.json, and the tokenizer and generation files of the source. Collective.

    dtype: type of the weights on disk, None for that of the parameters. max_shard_size: of a file, such as 5GB. An
    existing directory is replaced; keeps_others, door: as for publish. read: returns the tensor to write for a
    parameter instead of its values. changed: tokenizer and generation files that training has changed. in_fp8: weights
    of linears are quantized (quantize.py).

    Raises:
        TrainingError: OUTPUT_NOT_WRITABLE, on all ranks, when any rank could not write.
    """
    first = partial(_is_quantized, table.sizes(spec)) if in_fp8 else none
    stacking = stacking_of(spec)
    plan = _plan(chunks, spec, dtype, bytes_of(max_shard_size), first, stacking)
    written = replace(spec, config={**spec.config, **plan.config})

    def write(aside: Path) -> None:
        stream = quantize.quantized(tensors(chunks, spec, read=read, first=first), plan.quantized)
        _write(aside, plan.files, _with_copied(stacked(stream, stacking), spec))

    def complete(aside: Path) -> None:
        _complete(aside, written, dtype or spec.dtype, plan.index, changed)

    publish(Path(directory), [write, on_first_rank(complete)], keeps_others=keeps_others, door=door)


def bytes_of(size: str) -> int:
    """The number of bytes in 5GB, 500MB, 2GiB or a plain number.

    Raises:
        ValueError: any other text.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B|)\s*", size, re.IGNORECASE)
    if match is None:
        raise ValueError(f"a size is a number with KB, MB, GB, TB, KiB, MiB, GiB or TiB (got {size!r})")
    return int(float(match[1]) * _UNITS[match[2].upper()])


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is written where.

    files: of this rank, numbered over all ranks. index: for each tensor of the model its file and size. quantized: the
    tensors of this rank that are stored in FP8. config: what config.json says about that.
    """

    files: list[_File]
    index: dict[str, tuple[str, int]]
    quantized: frozenset[str]
    config: Mapping[str, object]


def _is_quantized(sizes: Sizes, entry: Entry) -> bool:
    return quantize.is_quantized(entry, pieces(entry, sizes))


def _plan(
    chunks: Sequence[torch.nn.Module],
    spec: ModelSpec,
    dtype: torch.dtype | None,
    max_bytes: int,
    first: Callable[[Entry], bool],
    stacking: Stacking | None,
) -> _Plan:
    sizes = table.sizes(spec)
    mine: list[Piece] = []
    quantized: set[str] = set()
    for entry in filter(writes, exported(chunks, spec, first=first)):
        of_entry = [_narrowed(piece, dtype) for piece in written_pieces(entry, sizes)]
        if first(entry):
            quantized.update(entry.names)
            of_entry = [part for piece in of_entry for part in quantize.quantized_pieces(piece)]
        mine += of_entry
    mine = [replace(piece, name=_stored_name(piece.name, spec)) for piece in stacked_pieces(mine, stacking)]
    mine += _copied_pieces(spec)
    groups = list(_grouped(mine, max_bytes))
    every: list[list[tuple[Piece, ...]]] = [groups] * dist.get_world_size()
    dist.all_gather_object(every, groups)
    total = sum(map(len, every))
    before = [0, *accumulate(map(len, every))][dist.get_rank()]
    files = [_File(name=_file_name(before + number, total), pieces=group) for number, group in enumerate(groups)]
    numbered = enumerate(group for rank in every for group in rank)
    index = {p.name: (_file_name(number, total), num_bytes(p)) for number, group in numbered for p in group}
    section = quantize.config_section([piece for rank in every for group in rank for piece in group])
    is_any = first is not none
    config = {"quantization_config": section} if is_any else {}
    return _Plan(files=files, index=index, quantized=frozenset(quantized), config=config)


def _narrowed(piece: Piece, dtype: torch.dtype | None) -> Piece:
    return piece if dtype is None or piece.name.endswith(_KEPT_WIDE) else replace(piece, dtype=dtype)


def _stored_name(name: str, spec: ModelSpec) -> str:
    return outside(name, FAMILIES[spec.model.family].file_names)


def _grouped(all_pieces: Sequence[Piece], max_bytes: int) -> Iterator[tuple[Piece, ...]]:
    """Runs of tensors that fit into a file; a larger tensor gets its own."""
    group: list[Piece] = []
    size = 0
    for piece in all_pieces:
        if group and size + num_bytes(piece) > max_bytes:
            yield tuple(group)
            group, size = [], 0
        group.append(piece)
        size += num_bytes(piece)
    if group:
        yield tuple(group)


def _file_name(number: int, total: int) -> str:
    return SINGLE_FILE if total == 1 else f"model-{number + 1:05d}-of-{total:05d}.safetensors"


def _write(aside: Path, files: Sequence[_File], stream: Iterator[tuple[str, Tensor]]) -> None:
    """Writes the files of this rank. After an error the stream is consumed without writing: the other ranks wait for
    it. An error of the stream itself ends this rank, as nothing else reaches those that wait in it.
    """
    error: Exception | None = None
    waiting = list(files)
    current: SafetensorsFile | None = None
    for name, tensor in _ending_alone(stream):
        if error is not None:
            continue
        try:
            if current is None or current.is_complete:
                current = _next_file(aside, waiting, current)
            current.write(name, tensor)
        except Exception as err:  # noqa: BLE001 - it is raised once the others have what they wait for
            error = err
    if error is not None:
        with contextlib.suppress(OSError):  # what comes of the first one
            _close(current)
        raise error
    _close(current)


def _ending_alone(stream: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    try:
        yield from stream
    except Exception as err:
        raise Alone(err) from err


def _close(file: SafetensorsFile | None) -> None:
    if file is not None:
        file.close()


def _next_file(aside: Path, waiting: list[_File], current: SafetensorsFile | None) -> SafetensorsFile:
    if current is not None:
        current.close()
    file = waiting.pop(0)
    return SafetensorsFile(aside / file.name, file.pieces)


def _copied(spec: ModelSpec) -> Mapping[str, Source]:
    """Tensors of the source that the model does not use but the export copies; the first rank writes them."""
    patterns = untrained_predictions(spec.model)
    if dist.get_rank() != 0 or not patterns:
        return {}
    checkpoint = open_checkpoint(spec.directory)
    names = sorted(name for name in checkpoint.files if any(re.fullmatch(pattern, name) for pattern in patterns))
    return dict(_as_stored(name, checkpoint.tensor(name)) for name in names)


def _as_stored(name: str, tensor: Source) -> tuple[str, Source]:
    """The tensor, or for a matrix of an expert the stack that it is stored in."""
    return (tensor.slab.stack, tensor.stack) if isinstance(tensor, StackedMatrix) else (name, tensor)


def _copied_pieces(spec: ModelSpec) -> list[Piece]:
    copied = _copied(spec).items()
    return [Piece(name=name, shape=tuple(t.shape), dtype=_type_of(t, spec.dtype)) for name, t in copied]


def _type_of(tensor: Source, computed: torch.dtype) -> torch.dtype:
    """The type of a copied tensor on disk: its own, that of the model where it was stored in FP8."""
    return computed if isinstance(tensor, Dequantized) else tensor[:0].dtype


def _with_copied(stream: Iterator[tuple[str, Tensor]], spec: ModelSpec) -> Iterator[tuple[str, Tensor]]:
    yield from ((_stored_name(name, spec), tensor) for name, tensor in stream)
    yield from ((name, tensor[:]) for name, tensor in _copied(spec).items())


def _complete(
    aside: Path, spec: ModelSpec, dtype: torch.dtype, index: dict[str, tuple[str, int]], changed: Companions
) -> None:
    """Writes everything but the weights."""
    if len({file for file, _ in index.values()}) > 1:
        content = {
            "metadata": {"total_size": sum(size for _, size in index.values())},
            "weight_map": {name: file for name, (file, _) in sorted(index.items())},
        }
        (aside / INDEX_FILE).write_text(json.dumps(content, indent=2) + "\n")
    companions.write(aside, spec, dtype, changed)
