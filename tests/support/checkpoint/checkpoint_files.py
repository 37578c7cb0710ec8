"""Checkpoint folders without tensors, for what is decided by files alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from megatron_trainjob.checkpoint_folder import MANIFEST, Manifest, iteration_folder, record_of

INDEX = b"\x80\x02ctorch.distributed.checkpoint.metadata\nMetadata\n)\x81."
"""A pickled index without entries."""


def write(
    save: Path, iteration: int, *, files: Mapping[str, bytes] | None = None, validation_loss: float | None = None
) -> Path:
    """A complete checkpoint of these files in `save`."""
    path = iteration_folder(save, iteration)
    path.mkdir(parents=True)
    (path / MANIFEST).write_text(manifest(path, files, validation_loss=validation_loss).to_text())
    return path


def manifest(
    path: Path,
    files: Mapping[str, bytes] | None = None,
    *,
    validation_loss: float | None = None,
    iteration: int | None = None,
) -> Manifest:
    """Writes the files into the folder and returns the manifest that they make complete."""
    contents = files or {"__0_0.distcp": b"weights", ".metadata": INDEX}
    for name, content in contents.items():
        (path / name).write_bytes(content)
    return Manifest(
        iteration=iteration or int(path.name.partition("iter_")[2][:7]),
        layout={"tp": 2, "pp": 1, "cp": 1, "dp": 1, "ep": 1},
        world_size=2,
        train_type="full",
        has_optimizer=True,
        has_rng=True,
        loss=1.5,
        validation_loss=validation_loss,
        saved_at_epoch_s=1_750_000_000.0,
        files={name: record_of(path / name) for name in contents},
    )
