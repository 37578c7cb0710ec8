"""One node's folder of memory checkpoints: what lies there, publishing and removing. Writes no tensors.

    {folder}/{run}/iter_0000012/     files of this node's ranks, copies of the node before it, index, manifest
    {folder}/{run}/.launch-{token}/  of one launch of the ranks: written here, published and removed through its door

The folder of a run is named after the job and an identity that is stored in its save folder: memory that another job,
or another save folder, has left is never read. As in checkpoint/folder.py nothing is check-then-act: the next launch
removes the folder of the one before, and every rename of a process that wakes up later fails.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_trainer.checkpoint import folder as save_folder
from megatron_trainer.checkpoint.folder import Owner
from megatron_trainjob import input_file
from megatron_trainjob.checkpoint_folder import MANIFEST, NAME, Manifest, iteration_folder, read_manifest

IDENTITY = "memory_checkpoints.json"
LAUNCH = ".launch-"
RUN_NAME = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One memory checkpoint on one node. files: those of its manifest that are there and have the right size."""

    iteration: int
    manifest: Manifest
    files: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class NodeMemory:
    """The folder of one run on this node, and the launch of its ranks that may write to it."""

    run: Path
    token: str

    def claim(self) -> None:
        """Prepares the folder for this launch; removes what other runs and earlier launches have left in memory.

        Whatever else lies beside the runs stays.
        """
        self._door.mkdir(parents=True, exist_ok=True)
        for other in self.run.parent.iterdir():
            if other != self.run and _is_of_a_run(other):
                shutil.rmtree(other, ignore_errors=True)
        for left in self.run.glob(f"{LAUNCH}*"):
            if left != self._launch:
                shutil.rmtree(left, ignore_errors=True)

    @property
    def _launch(self) -> Path:
        return self.run / f"{LAUNCH}{self.token}"

    @property
    def _door(self) -> Path:
        """Only a claim creates it; a library that resumes in the middle of a save may create its parent again."""
        return self._launch / save_folder.DOOR

    def aside(self, iteration: int) -> Path:
        """Where the checkpoint of this iteration is written before it is published."""
        return iteration_folder(self._launch, iteration)

    def path(self, iteration: int) -> Path:
        """The published checkpoint of this iteration."""
        return iteration_folder(self.run, iteration)

    def publish(self, iteration: int) -> None:
        """Renames the written checkpoint; one of the same iteration is replaced."""
        self._remove(self.path(iteration))
        ready = self._door / self.path(iteration).name
        shutil.rmtree(ready, ignore_errors=True)
        self.aside(iteration).rename(ready)
        ready.rename(self.path(iteration))

    def keep_only(self, iteration: int | None) -> None:
        """Removes every published checkpoint but that of this iteration."""
        for each in self.run.iterdir():
            if NAME.fullmatch(each.name) and (iteration is None or each != self.path(iteration)):
                self._remove(each)

    def forget(self) -> None:
        """Gives all memory back."""
        shutil.rmtree(self.run, ignore_errors=True)

    def generations(self) -> dict[int, Generation]:
        """What lies here, by iteration; a folder without a readable manifest counts for nothing."""
        folders = [path for path in self.run.iterdir() if NAME.fullmatch(path.name)] if self.run.is_dir() else []
        read = ((path, read_manifest(path / MANIFEST)[0]) for path in folders)
        found = (_generation(path, manifest) for path, manifest in read if manifest is not None)
        return {each.iteration: each for each in found}

    def _remove(self, published: Path) -> None:
        removed = self._door / f"{published.name}.removed"
        shutil.rmtree(removed, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            published.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)


def _is_of_a_run(path: Path) -> bool:
    """Whether this folder is one that a run made: by its name, and because nothing but checkpoints is in it."""
    if not RUN_NAME.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
        return False
    try:
        return all(NAME.fullmatch(each.name) or each.name.startswith(LAUNCH) for each in path.iterdir())
    except OSError:  # another user's, or removed meanwhile
        return False


def _generation(path: Path, manifest: Manifest) -> Generation:
    here = {name for name, record in manifest.files.items() if _size(path / name) == record.size_bytes}
    return Generation(iteration=manifest.iteration, manifest=manifest, files=frozenset(here))


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def run_name(save: Path, writer: Owner) -> str:
    """The name of the run's folder in memory; stores an identity in the save folder where there is none yet.

    Only for the first rank, whose launch has claimed the save folder.
    """
    path = save / IDENTITY
    identity = _identity(path)
    if identity is None:
        identity = uuid.uuid4().hex
        with save_folder.owned(save, writer):
            save_folder.publish_text(path, json.dumps({"identity": identity}), writer)
    return uuid.uuid5(uuid.NAMESPACE_OID, f"{writer.job_uid}\n{save}\n{identity}").hex


def _identity(path: Path) -> str | None:
    try:
        content: Mapping[str, object] = input_file.read_json(path)
        return str(content["identity"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
