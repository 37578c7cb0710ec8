"""The weights of a model directory, opened once and read slice by slice: safetensors or torch's own files."""

from __future__ import annotations

import logging
import os
import pickle
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_trainer.convert.dequantize import FP8_TYPES, Dequantized, DequantizedBlocks
from megatron_trainer.convert.rules import Source
from megatron_trainer.failure import InvalidInput
from megatron_trainjob import input_file, quantization, weight_files
from megatron_trainjob.exit_codes import ExitCode
from megatron_trainjob.families import FAMILIES, flat, stacks, tensors
from megatron_trainjob.families.stacks import Slab
from megatron_trainjob.families.weights import in_table
from megatron_trainjob.quantization import Quantization
from megatron_trainjob.violation import Violation
from megatron_trainjob.weight_files import Unusable

logger = logging.getLogger(__name__)

_CONFIG_FILE = "config.json"


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor in a file; slicing it reads what was asked for."""

    stored: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of each dimension, from the file's header."""
        return tuple(self.stored.get_shape())

    def __getitem__(self, index: Any) -> Tensor:  # noqa: ANN401 - a slice or a tuple of them
        read: Tensor = self.stored[index] if self.shape else self.stored[...]
        return read


@dataclass(frozen=True, kw_only=True)
class StackedMatrix:
    """A matrix of one expert in a stack; slicing it reads what was asked for."""

    stack: Source
    slab: Slab

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the matrix."""
        return self.slab.shape

    def __getitem__(self, index: slice | tuple[slice, slice]) -> Tensor:
        """The rows, or rows and columns, of a slice."""
        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        first, last, _ = rows.indices(self.slab.rows)
        step = self.slab.step
        # Of interleaved rows the range is read; files are not sliced in steps.
        between = slice(self.slab.first + step * first, self.slab.first + step * (last - 1) + 1 if last > first else 0)
        expert = slice(self.slab.expert, self.slab.expert + 1)
        if self.slab.columns is None:
            return self.stack[expert, between][0, ::step]
        if self.slab.is_exchanged:
            return self.stack[expert, columns, between][0, :, ::step].t()
        return self.stack[expert, between, columns][0, ::step]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """files: tensor name -> file, without the scales of quantized ones. stored_names: of tensors stored under another
    name. slabs: the matrices of experts that are stored in stacks. Files stay memory-mapped once opened.
    """

    directory: Path
    files: Mapping[str, str]
    scale_files: Mapping[str, str] = field(default_factory=dict)
    quantization: Quantization | None = None
    opened: dict[str, Any] = field(default_factory=dict)
    stored_names: Mapping[str, str] = field(default_factory=dict)
    slabs: Mapping[str, Slab] = field(default_factory=dict)

    def with_name(self, name: str, stored: str) -> Checkpoint:
        """The same, with the tensor called `stored` as `name`."""
        files = {each: file for each, file in self.files.items() if each != stored}
        return replace(
            self, files={**files, name: self.files[stored]}, stored_names={**self.stored_names, name: stored}
        )

    def tensor(self, name: str) -> Source:
        """The tensor called `name`, dequantized if it is stored with scales. Raises KeyError if there is none."""
        if (slab := self.slabs.get(name)) is not None:
            return StackedMatrix(stack=self._in_full(slab.stack, self.files[name]), slab=slab)
        return self._in_full(name, self.files[name])

    def _in_full(self, name: str, file: str) -> Source:
        stored = self._stored(name, file)
        if (scales := self._scales_of_blocks(name)) is not None:
            return DequantizedBlocks(blocks=stored, scales=scales)
        if not (stored_type := _type_of(stored)).is_floating_point:
            message = f"{name} is stored as {stored_type}, which is invalid for a weight; download the model again"
            raise _unusable(self.directory, message)
        if self.quantization is None:
            return stored
        scale = self.quantization.scale_name(name)
        if scale in self.scale_files:
            scales = self._stored(scale, self.scale_files[scale])
            rounded = scales[:].dtype if self.quantization.rounds_to_scale(name) else None
            return Dequantized(weight=stored, scales=scales, block=self.quantization.block, rounded_to=rounded)
        if len(stored.shape) > 1 and stored_type in FP8_TYPES:
            raise _unusable(self.directory, f"{name} is stored in FP8 without {scale}; download the model again")
        return stored

    def grid_problem(self, name: str) -> str | None:
        """The problem with the scales of the tensor called `name`; empty if it has none."""
        scale = self.quantization.scale_name(name) if self.quantization else ""
        if self.quantization is None or scale not in self.scale_files:
            return None
        shape, scales = self.tensor(name).shape, self._stored(scale, self.scale_files[scale]).shape
        return quantization.grid_problem(name, shape, scales, self.quantization.block)

    def is_block(self, name: str) -> bool:
        """Whether a tensor is stored in blocks of four-bit numbers."""
        return self._scales_of_blocks(name) is not None

    def _scales_of_blocks(self, name: str) -> Source | None:
        """Those of a tensor that is stored in blocks of four-bit numbers, None for any other."""
        if self.quantization is None or not self.quantization.has_blocks:
            return None
        scale = self.quantization.scale_name(name)
        return self._stored(scale, self.scale_files[scale]) if scale in self.scale_files else None

    def _stored(self, name: str, file: str) -> Source:
        if file not in self.opened:
            self.opened[file] = _open(self.directory / file)
        opened = self.opened[file]
        name = self.stored_names.get(name, name)
        try:
            found: Source = opened[name] if isinstance(opened, dict) else StoredTensor(stored=opened.get_slice(name))
        except (KeyError, SafetensorError) as err:
            message = f"its index says that {file} holds {name}, which is missing; download it again"
            raise _unusable(self.directory, message) from err
        return found


def _type_of(stored: Source) -> torch.dtype:
    """The type of a stored tensor, without reading its values."""
    return stored[:0].dtype if stored.shape else stored[...].dtype


def open_checkpoint(directory: Path) -> Checkpoint:
    """The checkpoint in a model directory: the one that transformers would read.

    Raises:
        InvalidInput: there is none, or a file in the index is missing or broken.
    """
    source = _source(directory)
    opened: dict[str, Any] = {}
    if source.endswith(".index.json"):
        files = _indexed(directory, source)
    else:
        opened[source] = _open(directory / source)
        files = dict.fromkeys(opened[source].keys(), source)
    stored_names = {own: name for name in files if (own := in_table(name)) != name}
    files = {in_table(name): file for name, file in files.items()}
    if tensors.is_decoder_alone(files):
        stored_names = {f"{tensors.DECODER}{name}": name for name in files}
        files = {name: files[stored] for name, stored in stored_names.items()}
    stored_as = _quantization(directory)
    if stored_as and (problem := stored_as.problem_of_blocks(files)):
        raise _unusable(directory, problem)
    for name in [name for name in files if stored_as and stored_as.in_full(name) != name]:
        own = stored_as.in_full(name) if stored_as else name
        stored_names[own] = stored_names.pop(name, name)
        files[own] = files.pop(name)
    scales = {name for name in files if stored_as and stored_as.is_scale(name, files)}
    whole = Checkpoint(
        directory=directory,
        files={name: file for name, file in files.items() if name not in scales},
        scale_files={name: files[name] for name in scales},
        quantization=stored_as,
        opened=opened,
        stored_names=stored_names,
    )
    return _unstacked(whole)


def _unstacked(whole: Checkpoint) -> Checkpoint:
    """The same with the matrices of experts in place of their stacks."""
    names = [name for name in whole.files if stacks.is_stack(name)]
    if not names:
        return whole
    config = flat(input_file.read_json(whole.directory / _CONFIG_FILE))
    hidden_size, form = config.get("hidden_size"), FAMILIES[str(config["model_type"])].stack_form
    slabs: dict[str, Slab] = {}
    files = dict(whole.files)
    for name in names:
        found = stacks.slabs(
            name, whole.tensor(name).shape, int(hidden_size or 0), form.of(is_block=whole.is_block(name))
        )
        slabs |= found
        if found:
            files |= dict.fromkeys(found, files.pop(name))
    return replace(whole, files=files, slabs=slabs)


def _source(directory: Path) -> str:
    """The file to read, or the index of several files."""
    try:
        found = weight_files.sources(directory)
    except Unusable as problem:
        raise _unusable(directory, str(problem)) from problem
    if len(found) > 1:
        _tell_choice(directory, found[0], tuple(found[1:]))
    return found[0]


@cache
def _tell_choice(directory: Path, chosen: str, others: tuple[str, ...]) -> None:
    """Logs once which of several sources is read."""
    logger.warning(
        "%s has weights more than once: reading %s, as transformers does, and not %s",
        directory,
        chosen,
        ", ".join(others),
    )


def _indexed(directory: Path, index: str) -> dict[str, str]:
    try:
        return weight_files.indexed(directory, index)
    except Unusable as problem:
        raise _unusable(directory, str(problem)) from problem


def _quantization(directory: Path) -> Quantization | None:
    """The quantization of the weights according to config.json; read_model has refused unsupported ones."""
    try:
        return quantization.of(input_file.read_json(directory / _CONFIG_FILE))
    except FileNotFoundError:
        return None


def _open(path: Path) -> Any:  # noqa: ANN401 - safetensors' handle has no type of its own
    if not os.access(path, os.R_OK):  # safetensors would report a missing file
        mode = stat.filemode(path.stat().st_mode)
        raise _unusable(path, f"user {os.getuid()} may not read it ({mode}); chmod a+r it, or run as its owner")
    try:
        input_file.check(path)
        return safe_open(path, framework="pt", device="cpu") if path.suffix == ".safetensors" else _unpickled(path)
    except pickle.UnpicklingError as err:
        message = "holds more than tensors, which could run code; convert the model to safetensors where you trust it"
        raise _unusable(path, message) from err
    except InvalidInput:
        raise
    except Exception as err:  # a broken pickle may raise any exception
        raise _unusable(path, f"cannot be read ({err}); download it again") from err


def _unpickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that torch.save wrote, mapped; files from before torch 1.6 are read whole."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:
        found = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise _unusable(path, "is not a mapping from names to tensors; save the model with save_pretrained")
    return dict(found)


def _unusable(path: Path, message: str) -> InvalidInput:
    return InvalidInput((Violation(path="spec.args.model", value=str(path), message=message),), ExitCode.MISSING_INPUT)
