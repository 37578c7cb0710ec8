"""mtj validate: reports all problems of a manifest that this machine can detect. Starts nothing."""

from __future__ import annotations

import argparse
import json

from megatron_operator.cli.load import Loaded, add_manifest, load
from megatron_operator.cli.output import INVALID, OK, out, show_violations, show_warnings


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    command = commands.add_parser("validate", help="report all problems of a manifest")
    add_manifest(command)
    command.add_argument("--strict", action="store_true", help="treat warnings as errors, as spec.strict does")
    command.add_argument("--output", choices=("text", "json"), default="text", help="json for other programs")
    command.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """0 for a valid manifest, else 2 with all of its problems."""
    loaded = load(arguments, local=False, strict=arguments.strict)
    if arguments.output == "json":
        out.print_json(json.dumps(_as_data(loaded), default=str))
        return INVALID if loaded.violations else OK
    if loaded.job is None:
        show_violations(arguments.file, loaded.violations)
        return INVALID
    job = loaded.job
    show_warnings(job.warnings)
    out.print(
        f"[green]{job.name} is valid[/]: {job.task}, {job.num_nodes} x {job.nproc_per_node} processes, "
        f"{len(job.given_args)} arguments given"
    )
    return OK


def _as_data(loaded: Loaded) -> object:
    violations = [{"path": each.path, "value": each.value, "message": each.message} for each in loaded.violations]
    warnings = [str(each) for each in loaded.job.warnings] if loaded.job else []
    return {"valid": not violations, "violations": violations, "warnings": warnings}
