"""The folder in which huggingface_hub keeps one repository: blobs, refs, and a snapshot for each revision."""

from __future__ import annotations

from pathlib import Path

from megatron_trainjob import input_file


def snapshot(folder: Path) -> Path | None:
    """Where the files of the main revision lie, if the folder is such a cache; None for any other folder."""
    snapshots = folder / "snapshots"
    if not (snapshots.is_dir() and (folder / "refs").is_dir()):
        return None
    try:
        main = snapshots / input_file.read_text(folder / "refs" / "main").strip()
    except (OSError, ValueError):
        main = snapshots
    if main != snapshots and main.is_dir():
        return main
    return next(iter(sorted(path for path in snapshots.iterdir() if path.is_dir())), None)
