"""The weight files of a model folder, and what their index and headers show without a tensor library."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_trainjob import input_file, quantization
from megatron_trainjob.families import FAMILIES, shapes, stacks, tensors
from megatron_trainjob.families.model import Model
from megatron_trainjob.families.weights import in_table
from megatron_trainjob.quantization import BLOCK_SIZE, Quantization

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
SOURCES = (SINGLE_FILE, INDEX_FILE, "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Possible locations of weights, in the order of transformers: the first one present is read."""

ADAPTER_FILE = "adapter_config.json"
_LENGTH = struct.Struct("<Q")
_LONGEST_NAME_BYTES = 255
_LONGEST_HEADER_BYTES = 100_000_000
_COMPARED_BYTES = 2**20


class Unusable(ValueError):
    """A folder or file from which weights cannot be read; the message gives the reason and the remedy."""


def _remedy(directory: Path) -> str:
    """What to do about a folder without weights, from what lies there instead."""
    link = next((directory / name for name in SOURCES if (directory / name).is_symlink()), None)
    if link is not None:
        return f"{link.name} is a link to {link.readlink()}, which is missing; copy the folder with cp -L"
    if (directory / ADAPTER_FILE).is_file():
        return "it holds an adapter: pass it as adapter_load, and its base model as model"
    lying = sorted(path.name for path in directory.glob("*") if path.suffix in (".safetensors", ".bin", ".gguf"))
    shard = next((name for name in lying if "-of-" in name and not name.endswith(".gguf")), None)
    if shard:
        return f"{shard} has no index beside it; download the index too"
    if lying and lying[-1].endswith(".gguf"):
        return f"{lying[-1]} is in a format that is not read; download the model's safetensors"
    return "save the model with save_pretrained to get them"


def sources(directory: Path) -> list[str]:
    """The files or indexes that hold weights; the first is read.

    Raises Unusable if there is none, or an adapter beside them, with which the folder means another model.
    """
    found = [name for name in SOURCES if (directory / name).is_file()]
    if found and (directory / ADAPTER_FILE).is_file():
        message = "which transformers loads with it; pass the adapter as adapter_load, from a folder of its own"
        raise Unusable(f"holds an adapter beside the model ({ADAPTER_FILE}), {message}")
    if not found:
        raise Unusable(f"has no weights ({', '.join(SOURCES)}); {_remedy(directory)}")
    return found


def indexed(directory: Path, index: str) -> dict[str, str]:
    """Tensor name -> file, from an index. Raises Unusable if it cannot be read or names a missing file."""
    try:
        files: dict[str, str] = dict(_read(directory / index)["weight_map"])
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise Unusable(f"its {index} cannot be read ({err}); download it again") from err
    astray = sorted({str(name) for name in files.values() if not is_inside(name)})
    if astray:
        message = "which is not a file name in this folder; correct it, or download it again"
        raise Unusable(f"its {index} names {astray[0]!r}, {message}")
    lost = sorted(name for name in set(files.values()) if not (directory / name).is_file())
    if lost:
        raise Unusable(f"its index names {', '.join(lost)}, which is missing; download it again")
    return files


def is_inside(name: object) -> bool:
    """Whether this names a file directly in the folder: no other type, no path out of it, no subfolder."""
    return (
        isinstance(name, str)
        and name not in ("", "..")
        and Path(name).name == name
        and "\0" not in name
        and len(name.encode(errors="replace")) <= _LONGEST_NAME_BYTES
    )


def _read(path: Path) -> dict[str, Any]:
    return dict(input_file.read_json(path, most_bytes=input_file.MAX_TABLE_BYTES))


def problems(
    directory: Path, config: Mapping[str, Any], model: Model | None = None, *, has_scores: bool = False
) -> Iterator[str]:
    """Problems that loading would report for a model with this config.json, from file names and headers.

    model: the one that config.json with the arguments describes, None if unknown. has_scores: as in `table`.
    """
    try:
        stored = _stored(directory, sources(directory)[0])
    except Unusable as unusable:
        yield str(unusable)
        return
    if quantization.problem(config):  # args/model/check.py says so; nothing is known about its tensors
        return
    scales = quantization.of(config)
    if stored and scales and (problem := scales.problem_of_blocks(stored)):
        yield problem
        return
    if stored and model is not None and (model.vision or FAMILIES[model.family].stacks_experts):
        stored = {in_table(name): tensor for name, tensor in stored.items()}
        stored = _unstacked(stored, model, scales)
    if stored and tensors.is_decoder_alone(stored):
        stored = {f"{tensors.DECODER}{name}": tensor for name, tensor in stored.items()}
    if stored and model is not None and model.tied and not has_scores and tensors.is_output_alone(stored):
        stored[tensors.EMBEDDING] = stored.pop(tensors.OUTPUT)
    if model is not None and stored is not None:
        own = {name for name in stored if not (scales and scales.is_scale(name, stored))}
        yield from tensors.difference(model, own, has_scores=has_scores)
    wanted = _rows_alone(config, stored or {}) if model is None else shapes.shapes(model, has_scores=has_scores)
    yield from shapes.summaries(_misfits(stored or {}, wanted, scales, is_tied=model is not None and model.tied))


def _unstacked(stored: Mapping[str, Stored], model: Model, scales: Quantization | None) -> dict[str, Stored]:
    """The tensors with the matrices of experts in place of their stacks; those of torch files have no known shape."""
    found: dict[str, Stored] = {}
    for name, tensor in stored.items():
        if scales and scales.has_blocks and scales.is_scale(name, {scales.in_full(each) for each in stored}):
            continue
        own = scales.in_full(name) if scales else name
        found |= _matrices(own, tensor if own == name else _in_full(tensor), model, is_block=own != name)
    return found


def _matrices(name: str, tensor: Stored, model: Model, *, is_block: bool) -> dict[str, Stored]:
    if stacks.is_stack(name) and tensor.shape is None:
        return dict.fromkeys(stacks.names(name, model.num_experts), tensor)
    form = FAMILIES[model.family].stack_form.of(is_block=is_block)
    slabs = stacks.slabs(name, tensor.shape or (), model.hidden_size, form) if stacks.is_stack(name) else {}
    return {own: replace(tensor, shape=slab.shape) for own, slab in slabs.items()} or {name: tensor}


def _in_full(blocks: Stored) -> Stored:
    """The tensor with the shape that it has in full."""
    shape = blocks.shape
    return replace(blocks, shape=(*shape[:2], shape[2] * BLOCK_SIZE)) if shape and len(shape) == 4 else blocks


def _rows_alone(config: Mapping[str, Any], stored: Mapping[str, Stored]) -> dict[str, shapes.Shape]:
    """Checks that are possible for an unknown model: the number of rows of its vocabulary."""
    rows = config.get("vocab_size")
    found = {name: stored[name].shape for name in shapes.VOCABULARY if name in stored}
    return {name: (rows, *shape[1:]) for name, shape in found.items() if shape and isinstance(rows, int)}


def _misfits(
    stored: Mapping[str, Stored], wanted: Mapping[str, shapes.Shape], scales: Quantization | None, *, is_tied: bool
) -> Iterator[str]:
    known = {name: tensor.shape for name, tensor in stored.items() if tensor.shape is not None}
    for name, shape in known.items():
        grid = known.get(scales.scale_name(name)) if scales else None
        wrong = shapes.problem(name, shape, wanted)
        if wrong is None and name in wanted and scales and grid is not None:
            wrong = quantization.grid_problem(name, shape, grid, scales.block)
        if wrong:
            yield wrong
    both = [stored[name] for name in shapes.VOCABULARY if name in stored]
    if is_tied and len(both) == len(shapes.VOCABULARY) and both[0].shape == both[1].shape and _start_otherwise(*both):
        yield shapes.OTHER_OUTPUT


def _start_otherwise(one: Stored, other: Stored) -> bool:
    """Whether two tensors differ in their first bytes; loading compares all bytes."""
    return one.shape is not None and one.start() != other.start()


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A tensor in a file. shape: None if only loading can tell. offset: of its first byte. length: in bytes."""

    path: Path
    shape: shapes.Shape | None = None
    offset: int = 0
    length: int = 0

    def start(self) -> bytes:
        """Its first bytes, a MiB at most."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(min(self.length, _COMPARED_BYTES))


def _stored(directory: Path, source: str) -> dict[str, Stored] | None:
    """The tensors by name; None if only loading can tell. Raises Unusable for broken files or a wrong index."""
    if not source.endswith(".index.json"):
        return _header(directory / source)
    files = indexed(directory, source)
    headers = {file: _header(directory / file) for file in set(files.values())}
    found: dict[str, Stored] = {}
    for name, file in files.items():
        header = headers[file]
        if header is not None and name not in header:
            raise Unusable(f"its index says that {file} holds {name}, which is missing; download it again")
        found[name] = Stored(path=directory / file) if header is None else header[name]
    return found


def _header(path: Path) -> dict[str, Stored] | None:
    """The tensors of a safetensors file; None for a torch file, which only loading can read. Raises Unusable."""
    try:
        input_file.check(path)
        if path.suffix != ".safetensors":
            return None
        with path.open("rb") as file:
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            if length > _LONGEST_HEADER_BYTES:
                raise ValueError(f"a header of {length} bytes")
            header = input_file.parse_json(file.read(length))
        if not isinstance(header, dict):
            raise ValueError("it is not an object")
        first, size = _LENGTH.size + length, path.stat().st_size
        found = {name: _tensor(path, first, of) for name, of in header.items() if name != "__metadata__"}
    except PermissionError:  # loading names the file
        return None
    except (OSError, ValueError, OverflowError, TypeError, KeyError, struct.error) as err:
        raise Unusable(f"its {path.name} cannot be read (no header of safetensors: {err}); download it again") from err
    last = max((tensor.offset + tensor.length for tensor in found.values()), default=0)
    if last > size:
        raise Unusable(f"its {path.name} is truncated: {size} of {last} bytes; download it again")
    return found


def _tensor(path: Path, first: int, stated: Mapping[str, Any]) -> Stored:
    """A tensor from its entry in the header; `first` is the start of the data in the file. Raises as int() does."""
    start, end = (int(offset) for offset in stated["data_offsets"])
    shape = tuple(int(size) for size in stated["shape"])
    if not 0 <= start <= end or any(size < 0 for size in shape):
        raise ValueError(f"a tensor of shape {list(shape)} at bytes {start} to {end}")
    return Stored(path=path, shape=shape, offset=first + start, length=end - start)
