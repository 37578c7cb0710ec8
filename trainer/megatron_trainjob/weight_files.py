"""Which files of a model folder hold its weights, and what their index and headers tell without a tensor library."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
SOURCES = (SINGLE_FILE, INDEX_FILE, "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Where weights may lie, in the order in which transformers looks: the first that is there is read."""

VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
"""Tensors with a row for each token, in every family."""

_LENGTH = struct.Struct("<Q")
_LONGEST_HEADER_BYTES = 100_000_000


class Unusable(ValueError):
    """A folder or file that weights cannot be read from; the text says why and what to do."""


def sources(directory: Path) -> list[str]:
    """The files or indexes that hold weights; the first is read. Raises Unusable when there is none."""
    found = [name for name in SOURCES if (directory / name).is_file()]
    if not found:
        raise Unusable(f"has no weights ({', '.join(SOURCES)}); save the model with save_pretrained to get them")
    return found


def indexed(directory: Path, index: str) -> dict[str, str]:
    """Tensor name -> file, as an index says. Raises Unusable when it cannot be read or names a file that is lost."""
    try:
        files: dict[str, str] = dict(json.loads((directory / index).read_text())["weight_map"])
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise Unusable(f"its {index} cannot be read ({err}); download it again") from err
    lost = sorted(name for name in set(files.values()) if not (directory / name).is_file())
    if lost:
        raise Unusable(f"its index names {', '.join(lost)}, which is not there; download it again")
    return files


def rows_problem(name: str, rows: int, vocab_size: int) -> str | None:
    """What is wrong with the number of rows of an embedding or output layer, as config.json has the vocabulary."""
    return None if rows == vocab_size else f"{name} has {rows} rows, vocab_size says {vocab_size}"


def problems(directory: Path, config: Mapping[str, Any]) -> Iterator[str]:
    """What loading would say of the folder of a model with this config.json, as far as file names and headers tell."""
    try:
        source = sources(directory)[0]
        files = indexed(directory, source) if source == INDEX_FILE else dict.fromkeys(VOCABULARY, source)
    except Unusable as unusable:
        yield str(unusable)
        return
    vocab_size = config.get("vocab_size")
    for name in VOCABULARY:
        path = directory / files.get(name, "")
        shape = _header(path).get(name, {}).get("shape") if path.suffix == ".safetensors" else None
        wrong = rows_problem(name, shape[0], vocab_size) if shape and isinstance(vocab_size, int) else None
        if wrong:
            yield f"1 tensors are other than config.json and the arguments say: {wrong}"


def _header(path: Path) -> Mapping[str, Any]:
    """What a safetensors file says of its tensors; {} when it is none, which loading says better."""
    try:
        with path.open("rb") as file:
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            found = json.loads(file.read(min(length, _LONGEST_HEADER_BYTES)))
    except (OSError, ValueError, struct.error):
        return {}
    return found if isinstance(found, Mapping) else {}
