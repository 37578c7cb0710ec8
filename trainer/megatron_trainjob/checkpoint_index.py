"""Validates the index of a checkpoint (.metadata), which is a pickle, against the classes of a legitimate one.

A pickle names functions and calls them; one that names os.system runs a command when it is read. Nothing here imports
torch or anything named in the file: each name is checked against a list before it is used.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from megatron_trainjob import input_file
from megatron_trainjob.weight_files import is_inside

INDEX = ".metadata"
_METADATA = "torch.distributed.checkpoint.metadata"
_PLANNER = "torch.distributed.checkpoint.planner"
NAMES = frozenset(
    {
        (_METADATA, "Metadata"),
        (_METADATA, "MetadataIndex"),
        (_METADATA, "TensorStorageMetadata"),
        (_METADATA, "BytesStorageMetadata"),
        (_METADATA, "ChunkStorageMetadata"),
        (_METADATA, "TensorProperties"),
        (_METADATA, "StorageMeta"),
        (_METADATA, "_MEM_FORMAT_ENCODING"),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        (_PLANNER, "SavePlan"),
        (_PLANNER, "TensorWriteData"),
        (_PLANNER, "WriteItem"),
        (_PLANNER, "WriteItemType"),
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
        ("pathlib", "PosixPath"),
        ("pathlib", "PurePosixPath"),
        ("pathlib._local", "PosixPath"),
        ("collections", "OrderedDict"),
        ("builtins", "set"),
        ("builtins", "frozenset"),
    }
)
"""The classes and the two functions of an index; torch's dtypes are allowed too."""
NUMBER_TYPES = frozenset(
    {"float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32"}
    | {"uint64", "bool", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"}
)


class ForgedError(Exception):
    """A file names something that no checkpoint contains, or is not a pickle; none of its code was executed."""


def is_known(module: str, name: str) -> bool:
    """Whether an index may name this."""
    return (module, name) in NAMES or (module == "torch" and name in NUMBER_TYPES)


def check_place(state: object) -> None:
    """Raises ForgedError if the location of a tensor in the index is not a file beside the index."""
    if isinstance(state, Mapping) and "relative_path" in state and not is_inside(state["relative_path"]):
        named = state["relative_path"]
        raise ForgedError(f"names {named!r}, which is not a file name in its folder; nothing was read of it")


def problem(path: Path) -> str | None:
    """Why the file cannot be the index of a checkpoint; None if it contains only what an index contains."""
    try:
        input_file.check(path)
        index = _Checker(path.read_bytes()).load()
        if not isinstance(index, _Placeholder):
            raise ForgedError("is not the index of a checkpoint")
    except ForgedError as err:
        return f"{path} {err}"
    except Exception as err:  # noqa: BLE001 - a broken pickle raises anything
        return f"{path} is not the index of a checkpoint: {type(err).__name__}: {err}"
    return None


class _Placeholder:
    """Placeholder for an instance of any of the classes."""

    def __new__(cls, *_: object, **__: object) -> _Placeholder:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        check_place(state)

    def __setitem__(self, key: object, value: object) -> None:
        pass


class _Checker(pickle._Unpickler):
    """The pure-Python unpickler: the one in C allocates memory for as many values as a file claims."""

    read: Callable[[int], bytes]
    memo: dict[int, Any]
    stack: list[Any]

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self._num_places = len(content)

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch}

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - a class
        if not is_known(module, name):
            raise ForgedError(f"names {module}.{name}, which no checkpoint contains; nothing in it was run")
        return _Placeholder

    def _refuse(self) -> None:
        raise ForgedError("contains what no checkpoint contains; nothing in it was run")

    def _put(self) -> None:
        (place,) = struct.unpack("<I", self.read(4))
        if place > self._num_places:
            self._refuse()
        self.memo[place] = self.stack[-1]

    dispatch[pickle.LONG_BINPUT[0]] = _put
    for _code in (pickle.BYTEARRAY8, pickle.PERSID, pickle.BINPERSID, pickle.EXT1, pickle.EXT2, pickle.EXT4):
        dispatch[_code[0]] = _refuse
