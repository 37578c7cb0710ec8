"""Reads the pickles of torch and Megatron in a checkpoint without executing code from them.

A pickle names its classes and calls them: one that names `os.system` runs a command. Here only the classes of a
legitimate checkpoint are allowed; any other name aborts the read before it is looked up.
"""

# ruff: noqa: ANN401 - a pickle holds values of any type
from __future__ import annotations

import contextlib
import io
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import numpy as np
import torch
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from megatron_trainjob import checkpoint_index
from megatron_trainjob.checkpoint_index import ForgedError

SCALING_NAMES = frozenset(
    {
        ("io", "BytesIO"),
        ("_io", "BytesIO"),
        ("collections", "OrderedDict"),
        ("torch", "Size"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_tensor_v3"),
        ("torch.storage", "_load_from_bytes"),
        ("megatron.core.safe_globals", "safe_load_from_bytes"),
        ("torch.serialization", "_get_layout"),
        ("transformer_engine.common.recipe", "Format"),
        ("transformer_engine.common.recipe", "_FormatHelper"),
        ("transformer_engine.common.recipe", "DelayedScaling"),
        ("transformer_engine.common.recipe", "Float8CurrentScaling"),
        ("transformer_engine.common.recipe", "Float8BlockScaling"),
        ("transformer_engine.common.recipe", "MXFP8BlockScaling"),
        ("transformer_engine.common.recipe", "MMParams"),
        ("transformer_engine.common.recipe", "QParams"),
        ("megatron.core.extensions.transformer_engine", "TEDelayedScaling"),
    }
)
"""The classes in TransformerEngine's record of FP8 scaling."""


class _Unpickler(pickle.Unpickler):
    """Creates only objects that is_known allows."""

    def __init__(self, file: IO[bytes] | io.IOBase, is_known: Callable[[str, str], bool], what: str) -> None:
        super().__init__(file)
        self._is_known, self._what = is_known, what

    def find_class(self, module: str, name: str) -> Any:
        if not self._is_known(module, name):
            message = f"{self._what} names {module}.{name}, which no checkpoint contains; nothing in it was run"
            raise ForgedError(message)
        if name in ("_load_from_bytes", "safe_load_from_bytes"):
            return _storage_from_bytes
        return super().find_class(module, name)


def _storage_from_bytes(content: bytes) -> Any:
    """Unpickles a storage within a pickle as torch does, but with the same restrictions."""
    return torch.load(io.BytesIO(content), weights_only=True)


def read_index(file: IO[bytes] | io.IOBase, what: str) -> Metadata:
    """The index of a checkpoint: the shape and file of each tensor.

    Raises:
        ForgedError: it names a class that no index contains, or is not an index.
    """
    index = _Unpickler(file, checkpoint_index.is_known, what).load()
    if not isinstance(index, Metadata) or not isinstance(index.state_dict_metadata, dict):
        raise ForgedError(f"{what} is not the index of a checkpoint")
    try:
        for place in (index.storage_data or {}).values():
            checkpoint_index.check_place(vars(place))
    except (AttributeError, TypeError) as err:
        raise ForgedError(f"{what} is not the index of a checkpoint") from err
    except ForgedError as err:
        raise ForgedError(f"{what} {err}") from err
    return index


def check_scaling(states: Mapping[str, Any]) -> None:
    """Raises ForgedError if a record of FP8 scaling names a disallowed class: TransformerEngine unpickles it."""
    for name, value in states.items():
        content = _bytes_of(value)
        if content:
            _Unpickler(io.BytesIO(content), _is_of_scaling, name).load()


def _is_of_scaling(module: str, name: str) -> bool:
    return (module, name) in SCALING_NAMES or (module == "torch" and name in checkpoint_index.NUMBER_TYPES)


def _bytes_of(value: Any) -> bytes:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if value.numel() else b""
    return value.getvalue() if isinstance(value, io.BytesIO) else b""


@contextlib.contextmanager
def restricted() -> Iterator[None]:
    """Context in which torch's reader of distributed checkpoints unpickles by these rules; nothing else changes.

    Replaces FileSystemReader.read_metadata, which calls pickle.load, and DefaultLoadPlanner.load_bytes, which calls
    torch.load with weights_only false.
    """
    read_metadata, load_bytes = FileSystemReader.read_metadata, DefaultLoadPlanner.load_bytes
    FileSystemReader.read_metadata = _read_metadata  # type: ignore[method-assign]
    DefaultLoadPlanner.load_bytes = _load_bytes  # type: ignore[method-assign]
    try:
        with torch.serialization.safe_globals(_of_random_state()):
            yield
    finally:
        FileSystemReader.read_metadata = read_metadata  # type: ignore[method-assign]
        DefaultLoadPlanner.load_bytes = load_bytes  # type: ignore[method-assign]


def _read_metadata(self: FileSystemReader, *_args: Any, **keywords: Any) -> Metadata:
    path = self._get_metadata_path(keywords.get("rank"))
    with self.fs.create_stream(path, "rb") as file:
        index = read_index(file, str(path))
    storage: StorageMeta = getattr(index, "storage_meta", None) or StorageMeta()
    storage.load_id = self.load_id
    index.storage_meta = storage
    return index


def _load_bytes(self: DefaultLoadPlanner, read_item: Any, value: io.BytesIO) -> None:
    name = read_item.dest_index.fqn
    try:
        loaded = torch.load(value, weights_only=True)
    except pickle.UnpicklingError as err:
        raise ForgedError(f"the entry {name} contains other than plain values; nothing in it was run: {err}") from err
    if self.flatten_state_dict:
        set_element(self.original_state_dict, self.mappings[name], loaded)
    else:
        self.state_dict[name] = loaded


def _of_random_state() -> list[Any]:
    """The classes in a pickled NumPy random state; torch's list of safe classes has none of NumPy's."""
    state = np.random.get_state(legacy=True)[1]
    assert isinstance(state, np.ndarray)
    rebuild = state.__reduce__()[0]
    return [rebuild, np.ndarray, np.dtype, type(state.dtype), type(np.dtype("uint8")), io.BytesIO]
