"""The safetensors files of a model directory, opened once and read slice by slice."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_trainer.failure import InvalidInput
from megatron_trainjob.exit_codes import ExitCode
from megatron_trainjob.violation import Violation

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor in a file; slicing it reads what was asked for."""

    stored: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of each dimension, from the file's header."""
        return tuple(self.stored.get_shape())

    def __getitem__(self, index: Any) -> Tensor:  # noqa: ANN401 - a slice or a tuple of them
        return self.stored[index]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """files: tensor name -> file. Files stay mapped into memory once opened."""

    directory: Path
    files: Mapping[str, str]
    opened: dict[str, Any] = field(default_factory=dict)

    def tensor(self, name: str) -> StoredTensor:
        """The tensor called `name`. Raises KeyError where there is none."""
        file = self.files[name]
        if file not in self.opened:
            self.opened[file] = _open(self.directory / file)
        return StoredTensor(stored=self.opened[file].get_slice(name))


def open_checkpoint(directory: Path) -> Checkpoint:
    """The checkpoint in a model directory: one file, or several with an index.

    Raises:
        InvalidInput: there is none, or a file that the index names is missing or broken.
    """
    if (directory / INDEX_FILE).is_file():
        files: dict[str, str] = json.loads((directory / INDEX_FILE).read_text())["weight_map"]
        lost = sorted(name for name in set(files.values()) if not (directory / name).is_file())
        if lost:
            raise _unusable(directory, f"its index names {', '.join(lost)}, which is not there; download it again")
        return Checkpoint(directory=directory, files=files)
    if (directory / SINGLE_FILE).is_file():
        file = _open(directory / SINGLE_FILE)
        files = dict.fromkeys(file.keys(), SINGLE_FILE)
        return Checkpoint(directory=directory, files=files, opened={SINGLE_FILE: file})
    raise _unusable(
        directory, f"has neither {SINGLE_FILE} nor {INDEX_FILE}; save the model with save_pretrained to get them"
    )


def _open(path: Path) -> Any:  # noqa: ANN401 - safetensors' handle has no type of its own
    if not os.access(path, os.R_OK):  # safetensors would say that there is no such file
        mode = stat.filemode(path.stat().st_mode)
        raise _unusable(path, f"user {os.getuid()} may not read it ({mode}); chmod a+r it, or run as its owner")
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as err:
        raise _unusable(path, f"cannot be read ({err}); download it again") from err


def _unusable(path: Path, message: str) -> InvalidInput:
    return InvalidInput((Violation(path="spec.args.model", value=str(path), message=message),), ExitCode.MISSING_INPUT)
