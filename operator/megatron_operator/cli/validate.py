"""mtj validate: reports all problems of the manifests of a file that this machine can detect. Starts nothing."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from megatron_operator.cli.load import Loaded, add_manifest, load_all
from megatron_operator.cli.output import INVALID, OK, out, show_violations, show_warnings


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    command = commands.add_parser("validate", help="report all problems of a manifest")
    add_manifest(command)
    command.add_argument("--strict", action="store_true", help="treat warnings as errors, as spec.strict does")
    command.add_argument("--output", choices=("text", "json"), default="text", help="json for other programs")
    command.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """0 for valid manifests, else 2 with all of their problems."""
    loaded = load_all(arguments, strict=arguments.strict)
    is_valid = all(each.job is not None for each in loaded)
    if arguments.output == "json":
        out.print_json(json.dumps(_as_data(loaded), default=str))
        return OK if is_valid else INVALID
    for each in loaded:
        _show(each, arguments.file if len(loaded) == 1 else f"{arguments.file}: {_name(each)}")
    return OK if is_valid else INVALID


def _show(loaded: Loaded, title: str) -> None:
    if loaded.job is None:
        show_violations(title, loaded.violations)
        return
    job = loaded.job
    show_warnings(job.warnings)
    out.print(
        f"[green]{job.name} is valid[/]: {job.task}, {job.num_nodes} x {job.nproc_per_node} processes, "
        f"{len(job.given_args)} arguments given"
    )


def _name(loaded: Loaded) -> str:
    return str((loaded.raw.get("metadata") or {}).get("name", ""))


def _as_data(loaded: Sequence[Loaded]) -> object:
    """The problems of all jobs; with several, also those of each."""
    jobs = [_of_one(each) for each in loaded]
    if len(jobs) == 1:
        return jobs[0]
    together = {key: [entry for each in jobs for entry in each[key]] for key in ("violations", "warnings")}
    named = [{"name": _name(each), **data} for each, data in zip(loaded, jobs, strict=True)]
    return {"valid": not together["violations"], **together, "jobs": named}


def _of_one(loaded: Loaded) -> dict[str, Any]:
    violations = [{"path": each.path, "value": each.value, "message": each.message} for each in loaded.violations]
    warnings = [str(each) for each in loaded.job.warnings] if loaded.job else []
    return {"valid": not violations, "violations": violations, "warnings": warnings}
