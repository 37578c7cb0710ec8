"""The on-disk layout of a run's checkpoints: names, the manifest that proves completeness, and the newest one.

For the trainer, which writes them, and the command line, which lists them: reads small JSON files and checksums, never
tensors. A checkpoint is written to a temporary folder and renamed once its manifest is written, so a folder named
iter_NNNNNNN was complete at that time; the manifest tells whether it still is.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_trainjob import checkpoint_index, input_file
from megatron_trainjob.checksum import crc32_of

TRACKER = "latest_checkpointed_iteration.txt"
MANIFEST = "manifest.json"
OWNER = "owner.json"
RECORD = "args.json"
"""All arguments with their effective values, in the folder of a run and in each checkpoint."""
DATA_REPORT = "data_report.json"
"""What was read of each data set and what was dropped, in the folder of a run."""
BEST, LAST = POINTERS = ("best", "last")
"""Links to the best and the newest checkpoint beside them; files with the name where storage has no links."""
NAME = re.compile(r"iter_(\d{7,})")


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """Record of a file of a checkpoint: its size and its CRC-32 (cheap, and no protection against tampering)."""

    size_bytes: int
    crc32: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The contents of a checkpoint. layout: sizes by axis (tp, pp, cp, ep, dp); files: by name relative to the folder.

    loss: of the step that it was saved after; validation_loss: of an evaluation after that same step, if there was one.
    metric, metric_value, greater_is_better: criterion of the best checkpoint, if that is not the validation loss.
    run: the same for all checkpoints of a run, over its restarts; empty in those of earlier releases.
    """

    iteration: int
    layout: Mapping[str, int]
    world_size: int
    train_type: str
    has_optimizer: bool
    has_rng: bool
    loss: float | None
    validation_loss: float | None
    saved_at_epoch_s: float
    files: Mapping[str, FileRecord]
    metric: str = ""
    metric_value: float | None = None
    greater_is_better: bool = False
    run: str = ""

    @property
    def cost(self) -> float | None:
        """The value that is lowest in the best checkpoint; None without an evaluation that gave a number."""
        value = self.metric_value if self.metric else self.validation_loss
        return None if value is None or math.isnan(value) else -value if self.greater_is_better else value

    @property
    def size_bytes(self) -> int:
        """Of all files together."""
        return sum(record.size_bytes for record in self.files.values())

    def to_text(self) -> str:
        """The manifest as JSON, with a checksum over everything else in it."""
        fields = asdict(self)
        return json.dumps({**fields, "crc32": _checksum_of(fields)}, indent=1)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One iter_ folder. manifest and problem: exactly one of them is None."""

    path: Path
    iteration: int
    manifest: Manifest | None
    problem: str | None


def iteration_folder(save: Path, iteration: int) -> Path:
    """The folder of the checkpoint of this iteration."""
    return save / f"iter_{iteration:07d}"


def checkpoints(save: Path) -> tuple[Checkpoint, ...]:
    """Every iter_ folder in `save`, newest first, each with its manifest or its problem."""
    folders = [path for path in save.iterdir() if NAME.fullmatch(path.name)] if save.is_dir() else []
    return tuple(inspect(path) for path in sorted(folders, key=_iteration, reverse=True))


def of_run(found: Iterable[Checkpoint], newest: int) -> tuple[Checkpoint, ...]:
    """The checkpoints of the run whose last one has the iteration `newest`, newest first, and damaged ones before it.

    A run that started over in the folder of another has its checkpoints beside those of the other.
    """
    earlier = sorted((each for each in found if each.iteration <= newest), key=lambda each: -each.iteration)
    last = next((each.manifest for each in earlier if each.iteration == newest), None)
    return tuple(each for each in earlier if last is None or each.manifest is None or each.manifest.run == last.run)


def best(found: Iterable[Checkpoint]) -> Checkpoint | None:
    """The best complete checkpoint, by the metric of the newest evaluated one; None if none was evaluated."""
    evaluated = [each for each in found if each.manifest is not None and each.manifest.cost is not None]
    if not evaluated:
        return None
    newest = max(evaluated, key=lambda each: each.iteration)
    alike = [each for each in evaluated if _criterion(each) == _criterion(newest)]
    return min(alike, key=_cost)


def _criterion(checkpoint: Checkpoint) -> tuple[str, bool]:
    manifest = checkpoint.manifest
    return (manifest.metric, manifest.greater_is_better) if manifest else ("", False)


def _cost(checkpoint: Checkpoint) -> float:
    cost = checkpoint.manifest.cost if checkpoint.manifest else None
    return math.inf if cost is None else cost


def pointed_at(path: Path) -> Path:
    """The checkpoint that `best` or `last` in a folder refers to; any other path unchanged."""
    if path.name not in POINTERS:
        return path
    if path.is_file():
        return path.parent / path.read_text().strip()
    return path.resolve() if path.is_symlink() else path


def inspect(path: Path) -> Checkpoint:
    """Reads the manifest and compares the files' sizes with it; `damage` checks the contents."""
    manifest, problem = read_manifest(path / MANIFEST)
    if manifest is not None:
        problem = next(damage(path, manifest, manifest.files, with_contents=False), None)
    return Checkpoint(path=path, iteration=_iteration(path), manifest=None if problem else manifest, problem=problem)


def damage(path: Path, manifest: Manifest, names: Iterable[str], *, with_contents: bool) -> Iterator[str]:
    """The problem of each damaged file of `names`. with_contents: reads every byte and compares the checksums."""
    found = (_damage_of(path / name, manifest.files[name], with_contents=with_contents) for name in names)
    return (text for text in found if text)


def record_of(path: Path) -> FileRecord:
    """Size and checksum of a file, which is read completely."""
    checksum, size_bytes = crc32_of(path)
    return FileRecord(size_bytes=size_bytes, crc32=f"{checksum:08x}")


def _damage_of(path: Path, expected: FileRecord, *, with_contents: bool) -> str | None:
    try:
        size_bytes = path.stat().st_size
        if size_bytes != expected.size_bytes:
            return f"{path} has {size_bytes} bytes, expected {expected.size_bytes}"
        if with_contents and record_of(path) != expected:
            return f"{path} has changed since it was saved (its checksum differs)"
        if with_contents and path.name == checkpoint_index.INDEX:
            return checkpoint_index.problem(path)
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as err:
        return f"{path} cannot be read: {err}"
    return None


def read_manifest(path: Path) -> tuple[Manifest | None, str | None]:
    """The manifest in this file, or its problem."""
    try:
        fields = input_file.read_json(path, most_bytes=input_file.MAX_TABLE_BYTES)
        checksum = fields.pop("crc32")
        if checksum != _checksum_of(fields):
            return None, f"{path} has changed since it was saved (its checksum differs)"
        files = {name: FileRecord(**record) for name, record in fields.pop("files").items()}
        return Manifest(**fields, files=files), None
    except FileNotFoundError:
        return None, f"{path} is missing"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as err:
        return None, f"{path} cannot be read: {err}"


def _checksum_of(fields: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(fields, sort_keys=True).encode()):08x}"


def _iteration(path: Path) -> int:
    return int(path.name.removeprefix("iter_"))
