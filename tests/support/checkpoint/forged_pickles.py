"""Pickles that run code when they are read, and checkpoints with one in them whose manifest is right all the same."""

from __future__ import annotations

import json
import os
import pickle
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_trainjob.checkpoint_folder import MANIFEST, FileRecord, Manifest, record_of


class Command:
    """Unpickling it creates the file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def gadgets(marker: Path) -> dict[str, bytes]:
    """By name; each creates the marker, or takes all memory, when an ordinary unpickler reads it."""
    touch = f"touch {marker}".encode()
    return {
        "os.system": pickle.dumps(Command(marker)),
        "in a dictionary": pickle.dumps({"state_dict_metadata": {}, "planner_data": [Command(marker)]}),
        "protocol 0": b"cos\nsystem\n(S'" + touch + b"'\ntR.",
        "inst": b"(S'" + touch + b"'\nios\nsystem\n.",
        "eval": b'cbuiltins\neval\n(S\'__import__("os").system("' + touch + b"\")'\ntR.",
        "getattr": b"cbuiltins\ngetattr\n(cos\npath\nS'join'\ntR.",
        "a dotted name": b"\x80\x04\x8c\x05torch\x8c\x0fos.system.__sel\x93.",
        "torch.load": b"\x80\x04ctorch\nload\n(S'/dev/zero'\ntR.",
        "a claim of memory": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
        "a claim of places": b"\x80\x02Nr\xff\xff\xff\x7f.",
        "an index with a claim of places": b"\x80\x02ctorch.distributed.checkpoint.metadata\nMetadata\n)\x81"
        b"r\xff\xff\xff\x7f.",
        "an extension": b"\x80\x02\x82\x01.",
        "nothing": b"",
        "text": b"not a pickle",
    }


def with_index(checkpoint: Path, content: bytes) -> None:
    """Puts the bytes in the place of the index."""
    (checkpoint / ".metadata").write_bytes(content)
    sign(checkpoint, [".metadata"])


def with_entry(checkpoint: Path, name: str, content: Any) -> None:
    """Puts a value in the place of the entry whose name begins so, in an index that is otherwise the same."""
    import torch

    index = pickle.loads((checkpoint / ".metadata").read_bytes())
    torch.save(content, checkpoint / "__9_9.distcp")
    length = (checkpoint / "__9_9.distcp").stat().st_size
    for key, place in index.storage_data.items():
        if key.fqn.startswith(name):
            index.storage_data[key] = replace(place, relative_path="__9_9.distcp", offset=0, length=length)
    (checkpoint / ".metadata").write_bytes(pickle.dumps(index))
    sign(checkpoint, [".metadata", "__9_9.distcp"])


def with_place(checkpoint: Path, name: str) -> None:
    """Lets the index say that all tensors lie in the file of this name."""
    index = pickle.loads((checkpoint / ".metadata").read_bytes())
    index.storage_data = {key: replace(place, relative_path=name) for key, place in index.storage_data.items()}
    (checkpoint / ".metadata").write_bytes(pickle.dumps(index))
    sign(checkpoint, [".metadata"])


def sign(checkpoint: Path, names: list[str], *, left_out: str = "") -> None:
    """Makes the manifest right for these files: whoever can write them can write it."""
    if not (checkpoint / MANIFEST).exists():
        return
    fields = json.loads((checkpoint / MANIFEST).read_text())
    fields.pop("crc32")
    files = {name: FileRecord(**record) for name, record in fields.pop("files").items() if name != left_out}
    files |= {name: record_of(checkpoint / name) for name in names}
    manifest = Manifest(**fields, files=files)
    (checkpoint / MANIFEST).write_text(manifest.to_text())


def without_file(checkpoint: Path, name: str) -> None:
    """Takes a file out of the checkpoint and its manifest, as an earlier release would have left it."""
    (checkpoint / name).unlink(missing_ok=True)
    sign(checkpoint, [], left_out=name)
