"""mtj checkpoint: lists a folder's checkpoints, their contents, and whether they are complete. Needs no torch."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from megatron_operator.cli.output import FAILED, OK, error, escape, out, show_table, table
from megatron_operator.timestamp import to_text
from megatron_trainjob.checkpoint_folder import NAME, Checkpoint, Manifest, checkpoints, damage, inspect

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    command = commands.add_parser(
        "checkpoint", help="list the checkpoints of a folder and verify that they are complete"
    )
    command.add_argument("folder", type=Path, help="the folder that a run saves to, or one iter_ folder in it")
    command.add_argument("--verify", action="store_true", help="read every byte and compare the checksums")
    command.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """0 when every checkpoint is complete, 1 when one is damaged or none exists."""
    folder = arguments.folder
    found = (inspect(folder),) if NAME.fullmatch(folder.name) and folder.is_dir() else checkpoints(folder)
    if not found:
        missing = "no checkpoints (iter_ folders) in" if folder.is_dir() else "no such folder:"
        error.print(f"{missing} {escape(str(folder))}")
        return FAILED
    if arguments.verify:
        found = tuple(map(verified, found))
    show(found, was_read=arguments.verify)
    return FAILED if any(each.problem for each in found) else OK


def verified(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint, or its problem, after reading every file; several files in parallel."""
    manifest = checkpoint.manifest
    if manifest is None:
        return checkpoint

    def first_damage(name: str) -> str | None:
        return next(damage(checkpoint.path, manifest, (name,), with_contents=True), None)

    with ThreadPoolExecutor() as pool:
        problem = next(filter(None, pool.map(first_damage, manifest.files)), None)
    return replace(checkpoint, manifest=None if problem else manifest, problem=problem)


def show(found: Iterable[Checkpoint], *, was_read: bool) -> None:
    """One line per checkpoint, newest first, then the problem of each damaged one."""
    shown = table("", "iteration", "state", "size", "saved", "layout", "holds", "loss", "validation")
    problems = []
    for each in found:
        if each.manifest is None:
            shown.add_row(str(each.iteration), "[red]damaged[/]")
            problems.append(f"[red]iteration {each.iteration}[/]: {escape(each.problem or '')}")
        else:
            shown.add_row(str(each.iteration), "verified" if was_read else "complete", *_facts(each.manifest))
    show_table(shown)
    for problem in problems:
        out.print(problem)


def _facts(manifest: Manifest) -> list[str]:
    return [
        size(manifest.size_bytes),
        to_text(manifest.saved_at_epoch_s),
        " ".join(f"{axis}{ranks}" for axis, ranks in manifest.layout.items() if ranks > 1) or "one rank",
        _parts(manifest),
        _number(manifest.loss),
        _number(manifest.validation_loss),
    ]


def size(size_bytes: float) -> str:
    """Bytes in readable form, for example "1.5 GiB"."""
    unit = 0
    while size_bytes >= 1024 and unit < len(UNITS) - 1:
        size_bytes, unit = size_bytes / 1024, unit + 1
    return f"{size_bytes:.{1 if unit else 0}f} {UNITS[unit]}"


def _parts(manifest: Manifest) -> str:
    """What a run can load from it."""
    missing = [
        name for name, is_there in (("optimizer", manifest.has_optimizer), ("rng", manifest.has_rng)) if not is_there
    ]
    model = "adapter" if manifest.train_type == "lora" else "model"
    return f"{model}, without {' and '.join(missing)}" if missing else f"{model} and state"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
