"""Reads a PEFT adapter for all ranks: each reads its slices, and together they decide whether the adapter fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_trainer.convert import peft_format, stacked_adapter
from megatron_trainer.convert.source import StoredTensor
from megatron_trainer.convert.stacked_adapter import Part
from megatron_trainer.failure import InvalidInput
from megatron_trainer.lora import agree
from megatron_trainjob import input_file
from megatron_trainjob.exit_codes import ExitCode
from megatron_trainjob.families.stacks import STACK_FORM, StackForm
from megatron_trainjob.families.weights import in_table
from megatron_trainjob.violation import Violation

_SHOWN = 6
_STACKS_OF_A_LAYER = 4
"""A and B, of gate and up and of down."""
_OF_DECODER = "FEATURE_EXTRACTION"
"""PEFT's task_type of embedding models, which consist of the decoder only."""


@dataclass(frozen=True, kw_only=True)
class AdapterSource:
    """An adapter directory being read. `used`, `missing` and `different` fill up while this rank reads."""

    directory: Path
    config: Mapping[str, Any]
    file: Any
    keys: frozenset[str]
    used: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    different: set[str] = field(default_factory=set)

    def tensors(self, keys: Sequence[str]) -> list[StoredTensor]:
        """The tensors under these keys, to be sliced; if one is missing, nothing and a note."""
        absent = [key for key in keys if key not in self.keys]
        self.missing.update(absent)
        self.used.update(key for key in keys if key in self.keys)
        return [] if absent else [StoredTensor(stored=self.file.get_slice(key)) for key in keys]

    def present(self, keys: Sequence[str]) -> dict[int, StoredTensor]:
        """Those of these keys that are present, by their position in the list."""
        self.used.update(key for key in keys if key in self.keys)
        return {
            number: StoredTensor(stored=self.file.get_slice(key)) for number, key in enumerate(keys) if key in self.keys
        }

    def shared(self, keys: Sequence[str]) -> list[StoredTensor]:
        """The one tensor that is stored under all of these keys; if they differ, nothing and a note."""
        stored = self.tensors(keys)
        if not stored:
            return []
        first, *others = stored
        if any(not torch.equal(first[:], other[:]) for other in others):
            self.different.add(" and ".join(peft_format.layer_of(key) for key in keys))
            return []
        return [first]

    def fill(self, parameter: Tensor, values: Tensor, keys: Sequence[str]) -> None:
        """Copies this rank's values into the parameter; a note if the shape is not the model's."""
        if values.shape == parameter.shape:
            parameter.copy_(values)
        else:
            self.different.add(f"{peft_format.layer_of(keys[0])} with shape {list(values.shape)}")

    def judge(self) -> None:
        """Returns if every rank found all that it needs and no tensor is left over. Collective.

        Raises InvalidInput, the same on all ranks.
        """
        left_over = self.keys - agree.union(self.used)
        problems = [
            self._violation(names, message)
            for names, message in (
                (agree.union(self.missing), "tensors that this run trains are missing; use the adapter's selection"),
                (left_over, "tensors belong to no module that this run trains; use the adapter's target_modules"),
            )
            if names
        ]
        if different := agree.union(self.different):
            message = (
                "adapters do not fit this run's; merge the adapter into the model with PEFT (merge_and_unload) and "
                "train a new one"
            )
            problems.append(self._violation(different, message))
        if problems:
            raise InvalidInput(tuple(problems))

    def _violation(self, names: frozenset[str], message: str) -> Violation:
        kinds = sorted({peft_format.layer_of(name) for name in names})
        shown = ", ".join(kinds[:_SHOWN]) + (", ..." if len(kinds) > _SHOWN else "")
        return _violation(self.directory, f"{message}: {shown}")


def holds_adapter(directory: Path) -> bool:
    """Whether this is a PEFT directory; open_adapter reports any problem with it."""
    return (directory / peft_format.CONFIG_FILE).is_file()


def open_adapter(directory: Path, form: StackForm = STACK_FORM) -> AdapterSource:
    """The adapter in a directory. form: of the stacks of experts in the model's files.

    Raises InvalidInput (MISSING_INPUT) if it is missing or cannot be read.
    """
    try:
        config = dict(input_file.read_json(directory / peft_format.CONFIG_FILE))
        input_file.check(directory / peft_format.WEIGHTS_FILE)
        file: Any = safe_open(directory / peft_format.WEIGHTS_FILE, framework="pt", device="cpu")
    except (OSError, ValueError, TypeError, SafetensorError) as err:
        message = f"holds no readable {peft_format.CONFIG_FILE} and {peft_format.WEIGHTS_FILE} ({err})"
        raise InvalidInput((_violation(directory, message),), ExitCode.MISSING_INPUT) from err
    odd = next((key for key in file.keys() if not _is_of_adapter(key, file.get_slice(key))), None)  # noqa: SIM118
    if odd is not None:
        message = (
            f"{odd} in {peft_format.WEIGHTS_FILE} has a shape or type that is invalid in an adapter; download it again"
        )
        raise InvalidInput((_violation(directory, message),), ExitCode.MISSING_INPUT)
    named = peft_format.with_decoder if config.get("task_type") == _OF_DECODER else _in_table
    names = {named(key): key for key in file.keys()}  # noqa: SIM118 - no mapping
    shapes = {name: tuple(file.get_slice(key).get_shape()) for name, key in names.items() if ".experts." in name}
    parts = stacked_adapter.parts(shapes, config, form)
    keys = {*names, *parts} - {part.key for part in parts.values()}
    return AdapterSource(directory=directory, config=config, file=_Renamed(file, names, parts), keys=frozenset(keys))


def _in_table(key: str) -> str:
    """The key with the name of a weight table: a model with images nests both its parts."""
    prefix = peft_format.PREFIX if key.startswith(peft_format.PREFIX) else ""
    return prefix + in_table(key.removeprefix(prefix))


@dataclass(frozen=True)
class _Renamed:
    """A file whose tensors are renamed to the names of a full model, and those of stacked experts split."""

    file: Any
    names: Mapping[str, str]
    parts: Mapping[str, Part]
    last: dict[str, Tensor] = field(default_factory=dict)

    def get_slice(self, key: str) -> Any:  # noqa: ANN401 - safetensors' slice has no type of its own
        return _Computed(self.get_tensor(key)) if key in self.parts else self.file.get_slice(self.names[key])

    def get_tensor(self, key: str) -> Tensor:
        """The whole tensor."""
        part = self.parts.get(key)
        if part is None:
            found: Tensor = self.file.get_tensor(self.names[key])
            return found
        return part.of(self._stack(part.key))

    def _stack(self, key: str) -> Tensor:
        """A tensor of stacked experts, kept while its experts are read one by one."""
        if key not in self.last:
            if len(self.last) == _STACKS_OF_A_LAYER:
                self.last.clear()
            self.last[key] = self.file.get_tensor(self.names[key])
        return self.last[key]


@dataclass(frozen=True)
class _Computed:
    """A tensor in memory, with the interface of safetensors' slices."""

    tensor: Tensor

    def get_shape(self) -> list[int]:
        return list(self.tensor.shape)

    def __getitem__(self, index: Any) -> Tensor:  # noqa: ANN401 - a slice or a tuple of them
        return self.tensor[index]


def _is_of_adapter(key: str, stored: Any) -> bool:  # noqa: ANN401 - safetensors' slice has no type of its own
    """Whether a stored tensor can be A or B of an adapter (a matrix), or a weight that trains in full."""
    num_dims = len(stored.get_shape())
    return num_dims in ((2,) if ".lora_" in key else (1, 2)) and stored.get_dtype().startswith(("F", "BF"))


def _violation(directory: Path, message: str) -> Violation:
    return Violation(path="spec.args.adapter_load", value=str(directory), message=message)
