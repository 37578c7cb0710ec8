"""Which files of a model folder hold its weights, and what their index and headers tell without a tensor library."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_trainjob import input_file, quantization
from megatron_trainjob.families import tensors
from megatron_trainjob.families.model import Model

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
SOURCES = (SINGLE_FILE, INDEX_FILE, "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Where weights may lie, in the order in which transformers looks: the first that is there is read."""

VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
"""Tensors with a row for each token, in every family."""

_LENGTH = struct.Struct("<Q")
_LONGEST_NAME_BYTES = 255
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
        files: dict[str, str] = dict(_read(directory / index)["weight_map"])
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise Unusable(f"its {index} cannot be read ({err}); download it again") from err
    astray = sorted({str(name) for name in files.values() if not is_inside(name)})
    if astray:
        message = "which is no name of a file in this folder; correct it, or download it again"
        raise Unusable(f"its {index} names {astray[0]!r}, {message}")
    lost = sorted(name for name in set(files.values()) if not (directory / name).is_file())
    if lost:
        raise Unusable(f"its index names {', '.join(lost)}, which is not there; download it again")
    return files


def is_inside(name: object) -> bool:
    """Whether this names a file of the folder itself: no other type, no way out of it, no folder within."""
    return (
        isinstance(name, str)
        and name not in ("", "..")
        and Path(name).name == name
        and "\0" not in name
        and len(name.encode(errors="replace")) <= _LONGEST_NAME_BYTES
    )


def _read(path: Path) -> dict[str, Any]:
    return dict(input_file.read_json(path, most_bytes=input_file.MAX_TABLE_BYTES))


def rows_problem(name: str, rows: int, vocab_size: int) -> str | None:
    """What is wrong with the number of rows of an embedding or output layer, as config.json has the vocabulary."""
    return None if rows == vocab_size else f"{name} has {rows} rows, vocab_size says {vocab_size}"


def problems(
    directory: Path, config: Mapping[str, Any], model: Model | None = None, *, has_scores: bool = False
) -> Iterator[str]:
    """What loading would say of the folder of a model with this config.json, as far as file names and headers tell.

    model: what config.json means with the arguments put in, None where that is not known. has_scores: as for the table.
    """
    try:
        files = _stored(directory, sources(directory)[0])
    except Unusable as unusable:
        yield str(unusable)
        return
    if model is not None and files:
        scales = quantization.of(config)
        own = {name for name in files if not (scales and scales.is_scale(name, files))}
        yield from tensors.difference(model, own, has_scores=has_scores)
    vocab_size = config.get("vocab_size")
    for name in VOCABULARY:
        rows = _rows(directory / files[name], name) if name in files else None
        wrong = rows_problem(name, rows, vocab_size) if rows is not None and isinstance(vocab_size, int) else None
        if wrong:
            yield f"1 tensors are other than config.json and the arguments say: {wrong}"


def _stored(directory: Path, source: str) -> dict[str, str]:
    """Tensor name -> file; nothing where only loading tells. Raises Unusable for an index that its files belie."""
    if not source.endswith(".index.json"):
        return dict.fromkeys(_header(directory / source).keys() - {"__metadata__"}, source)
    files = indexed(directory, source)
    headers = {file: _header(directory / file) for file in set(files.values())}
    for name, file in files.items():
        if headers[file] and name not in headers[file]:
            raise Unusable(f"its index says that {file} holds {name}, which is not there; download it again")
    return files


def _rows(path: Path, name: str) -> int | None:
    """Rows of a tensor by the header of its file; None where the header does not say."""
    stated = _header(path).get(name)
    shape = stated.get("shape") if isinstance(stated, Mapping) else None
    return shape[0] if isinstance(shape, list) and shape and isinstance(shape[0], int) else None


def _header(path: Path) -> Mapping[str, Any]:
    """What a safetensors file says of its tensors; {} when it is none, which loading says better."""
    if path.suffix != ".safetensors":
        return {}
    try:
        input_file.check(path)
        with path.open("rb") as file:
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            found = input_file.parse_json(file.read(min(length, _LONGEST_HEADER_BYTES)))
    except (OSError, ValueError, struct.error):
        return {}
    return found if isinstance(found, Mapping) else {}
