"""Checkpoints of other programs of the Megatron family: recognized by their files, read for their weights.

They have no manifest, so nothing proves them complete. A damaged checkpoint of our own is never taken for one.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron_trainer.failure import TrainingError
from megatron_trainjob import checkpoint_index, input_file
from megatron_trainjob.checkpoint_folder import MANIFEST, NAME, OWNER, TRACKER, Checkpoint, iteration_folder
from megatron_trainjob.exit_codes import ExitCode

logger = logging.getLogger(__name__)

Format = Literal["torch_dist", "torch", "zarr", "safetensors"]
REMEDIES: dict[Format, str] = {
    "zarr": "Megatron-Core no longer reads zarr; convert it to torch_dist with the release that wrote it",
    "safetensors": "this is a Hugging Face model; name it in spec.args.model",
}


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """A folder and the format recognized by its files."""

    path: Path
    iteration: int
    format: Format


def find(load: Path) -> Foreign | None:
    """The checkpoint of another program in `load` (the newest, by the tracker file), or None."""
    if (load / OWNER).exists() or (load.parent / OWNER).exists():
        return None
    for path in _places(load):
        found = None if (path / MANIFEST).exists() else recognize(path)
        if found:
            match = NAME.fullmatch(path.name)
            return Foreign(path=path, iteration=int(match[1]) if match else 0, format=found)
    return None


def recognize(path: Path) -> Format | None:
    """The format of a folder, by its files."""
    try:
        return _declared_format(input_file.read_json(path / "metadata.json"))
    except (OSError, ValueError):
        pass
    if any(path.glob("mp_rank_*/*.pt")):
        return "torch"
    return "safetensors" if any(path.glob("*.safetensors")) else None


def accepted(found: Foreign) -> Checkpoint:
    """The checkpoint to read weights from; its manifest and its problem are both None.

    Raises:
        TrainingError: this format is not supported; names a tool that reads it.
    """
    if found.format not in ("torch_dist", "torch"):
        message = f"{found.path} is in the format {found.format}: {REMEDIES[found.format]}"
        raise TrainingError(ExitCode.CHECKPOINT_INCOMPATIBLE, message)
    forged = found.format == "torch_dist" and checkpoint_index.problem(found.path / checkpoint_index.INDEX)
    if forged:
        raise TrainingError(ExitCode.CHECKPOINT_INCOMPATIBLE, forged)
    logger.warning("checkpoint=%s is of another program: it has no manifest that proves it complete", found.path)
    return Checkpoint(path=found.path, iteration=found.iteration, manifest=None, problem=None)


def _places(load: Path) -> list[Path]:
    """Candidate folders of a checkpoint: the folder itself, or the one named in the tracker file."""
    try:
        return [load, iteration_folder(load, int(input_file.read_text(load / TRACKER)))]
    except (OSError, ValueError):
        return [load]


def _declared_format(metadata: object) -> Format | None:
    backend = metadata.get("sharded_backend") if isinstance(metadata, dict) else None
    return backend if backend in ("torch_dist", "zarr") else None
