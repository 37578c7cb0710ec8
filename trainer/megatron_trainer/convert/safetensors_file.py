"""Writes a safetensors file tensor by tensor: the header first, from shapes only, then the data as it arrives.

The safetensors library needs all tensors of a file at once, which would take gigabytes of memory.
Format: 8 bytes length of the header, little-endian; the header, JSON, padded with spaces to 8; the data.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from megatron_trainer.convert.stream import Piece

_NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int64: "I64",
}


def num_bytes(piece: Piece) -> int:
    """Size of a tensor's data."""
    return prod(piece.shape) * piece.dtype.itemsize


class SafetensorsFile:
    """A file being written; tensors arrive in the order of `pieces`."""

    def __init__(self, path: Path, pieces: Sequence[Piece]) -> None:
        self._waiting = list(pieces)
        self._file: IO[bytes] = path.open("wb")
        self._file.write(_header(pieces))

    def write(self, name: str, tensor: Tensor) -> None:
        """Writes the next tensor, converted to its announced type.

        Raises:
            ValueError: not the next tensor, or another shape.
        """
        piece = self._waiting.pop(0)
        if (piece.name, piece.shape) != (name, tuple(tensor.shape)):
            raise ValueError(f"expected {piece.name} {piece.shape}, got {name} {tuple(tensor.shape)}")
        data = tensor.detach().to(device="cpu", dtype=piece.dtype).contiguous()
        self._file.write(memoryview(data.flatten().view(torch.uint8).numpy()))

    @property
    def is_complete(self) -> bool:
        """Whether every announced tensor was written."""
        return not self._waiting

    def close(self) -> None:
        """Closes the file; missing tensors leave it unreadable."""
        self._file.close()


def _header(pieces: Sequence[Piece]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for piece in pieces:
        end = offset + num_bytes(piece)
        entries[piece.name] = {
            "dtype": _NAMES[piece.dtype],
            "shape": list(piece.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
