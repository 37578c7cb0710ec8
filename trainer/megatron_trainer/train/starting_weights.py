"""Identifies the weights a run starts from by content: the same path, names and shapes may hold other weights."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch.distributed as dist

from megatron_trainer.convert.adapter_source import holds_adapter
from megatron_trainjob import weight_files
from megatron_trainjob.args.field import Task
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.checkpoint_folder import NAME, checkpoints, inspect, pointed_at

BLOCKS = 2048
"""Blocks sampled evenly over all files of a model: one every 8 MB of 16 GB, so no trained matrix fits between two."""
BLOCK_BYTES = 4096
SHOWN_DIGITS = 12


def identities(args: TrainArgs, task: Task, directory: Path, save: Path) -> dict[str, str | None]:
    """The `weights` entry of args.json: path and digest of the base, the adapter and the reference. Collective.

    Only the first rank reads. None: random weights, or no weights found. directory: of the model.
    """
    found = [_identities(args, task, directory, save)] if dist.get_rank() == 0 else [{}]
    dist.broadcast_object_list(found, src=0)
    return found[0]


def _identities(args: TrainArgs, task: Task, directory: Path, save: Path) -> dict[str, str | None]:
    model = directory if args.no_initialization else None
    # A run that loads from its own folder starts from the model; what it loads later is its own checkpoint.
    load = _identity(args.load) if args.load and Path(args.load).resolve() != save.resolve() else None
    base = load or _identity(model)
    adapter = _identity(args.adapter_load) if args.train_type != "full" else None
    return {"base": base, "adapter": adapter, "reference": _reference(args, task, base)}


def _reference(args: TrainArgs, task: Task, base: str | None) -> str | None:
    if task != "rlhf" or args.rlhf_type == "rm" or args.reference_free:
        return None
    named = args.ref_load if args.train_type == "full" else args.ref_adapter_load
    return _identity(named) if named else base


def _identity(place: Path | str | None) -> str | None:
    """The path with a digest of the weights in it; None if there are none."""
    try:
        digest = None if place is None else folder_digest(Path(place))
    except (OSError, ValueError):  # loading reports it better
        digest = None
    return None if digest is None else f"{place} (sha256 {digest[:SHOWN_DIGITS]})"


def folder_digest(folder: Path) -> str | None:
    """Digest that distinguishes the weights of models, adapters or checkpoints; None if a folder holds none.

    For a checkpoint with a manifest, of its checksums; else of names, sizes and a sample of the content.
    """
    if holds_adapter(folder):
        return sample_digest(sorted(path for path in folder.glob("adapter_*") if path.is_file()))
    if (folder / "config.json").exists():
        return sample_digest(_model_files(folder))
    place = pointed_at(folder)
    found = (inspect(place),) if NAME.fullmatch(place.name) else checkpoints(place)
    manifest = next((each.manifest for each in found if each.manifest is not None), None)
    if manifest is not None:
        records = {name: asdict(record) for name, record in manifest.files.items() if name.endswith(".distcp")}
        return hashlib.sha256(json.dumps(records, sort_keys=True).encode()).hexdigest()
    return sample_digest(sorted(path for path in place.rglob("*.distcp") if path.is_file()))


def _model_files(folder: Path) -> list[Path]:
    """The files that the weights are read from. Problems with them are left for loading to report."""
    try:
        source = weight_files.sources(folder)[0]
        indexed = weight_files.indexed(folder, source).values() if source.endswith(".index.json") else [source]
    except weight_files.Unusable:
        return []
    return [folder / name for name in sorted(set(indexed))]


def sample_digest(files: Sequence[Path]) -> str | None:
    """A digest of sizes and at most BLOCKS blocks of all files together, with the head of each; None for no files."""
    sizes = [file.stat().st_size for file in files]
    if not files:
        return None
    step = max(BLOCK_BYTES, sum(sizes) // BLOCKS)
    digest = hashlib.sha256(json.dumps(sizes).encode())
    for file, size in zip(files, sizes, strict=True):
        for block in _blocks(file, size, step):
            digest.update(block)
    return digest.hexdigest()


def _blocks(file: Path, size: int, step: int) -> Iterator[bytes]:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        for start in range(0, size, step):
            yield os.pread(descriptor, BLOCK_BYTES, start)
        yield os.pread(descriptor, BLOCK_BYTES, max(size - BLOCK_BYTES, 0))
    finally:
        os.close(descriptor)
