"""mtj run: runs a manifest on this machine, shows its progress, and reports at the end where the results are."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_operator import manifest
from megatron_operator.api import names
from megatron_operator.cli import dropped_rows
from megatron_operator.cli import status as status_command
from megatron_operator.cli.load import Loaded, add_manifest, bindings, load
from megatron_operator.cli.output import (
    FAILED,
    INVALID,
    OK,
    error,
    escape,
    out,
    show_violations,
    show_warnings,
)
from megatron_operator.cli.run_display import Display
from megatron_operator.cluster.local import machine as local_machine
from megatron_operator.cluster.local import run as local_run
from megatron_operator.cluster.local.cluster import Machine
from megatron_operator.cluster.local.paths import NoSuchVolume
from megatron_operator.cluster.local.run import Result
from megatron_operator.cluster.local.state import Busy, State, reopened
from megatron_operator.core.job import Job
from megatron_trainjob import shown

Object = Mapping[str, Any]
_ABSENT = "not set"


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    command = commands.add_parser("run", help="run a manifest on this machine")
    add_manifest(command)
    command.add_argument("--device", choices=("cpu", "cuda"), help="the backend (default: GPUs if there are any)")
    again = "run a finished job again, from its newest checkpoint, with the current manifest"
    command.add_argument("--again", action="store_true", help=again)
    command.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """0 when the job succeeded, 1 when it failed or cannot start, 2 on wrong input, 128 + n after signal n."""
    loaded = load(arguments, local=True)
    if loaded.job is None:
        show_violations(arguments.file, loaded.violations)
        return INVALID
    state = State(directory=arguments.state_dir / loaded.job.name)
    try:
        with state.locked():
            return _run_locked(arguments, loaded, state)
    except Busy as busy:
        error.print(f"[red]{escape(str(busy))}[/]; see mtj status {loaded.job.name}")
        return FAILED
    except OSError as problem:
        place, reason = escape(str(state.directory)), escape(str(problem))
        remedy = "make room there, or name another folder with --state-dir"
        error.print(f"[red]cannot write the job's state to {place}: {reason}[/]; {remedy}. None of its processes runs.")
        return FAILED


def _run_locked(arguments: argparse.Namespace, loaded: Loaded, state: State) -> int:
    before = state.read_status()
    if before.get("phase") == "Succeeded":
        if not arguments.again:
            return _already_finished(arguments, loaded, state, before)
        state.write_status(reopened(before))
    taken = state.take(loaded.raw)
    job = manifest.parse(taken, hf_config=loaded.hf_config)
    assert isinstance(job, Job), "uid and generation change nothing that parse checks"
    show_warnings((*job.warnings, *ignored_here(job)))
    _announce(job, state, before)
    bound, _ = bindings(arguments.volume)
    machine = Machine(num_gpus=local_machine.num_gpus(), device=arguments.device, bound=bound)
    try:
        with Display(out, job) as display:
            result = local_run.run(job, state, machine, display.show)
    except NoSuchVolume as problem:
        error.print(f"[red]{escape(str(problem))}[/]")
        return INVALID
    return _report_result(job, state, result)


def _announce(job: Job, state: State, before: Object) -> None:
    iteration = before.get("checkpoint", {}).get("latestIteration")
    resumes = f"; continues from the checkpoint of iteration {iteration}" if iteration is not None else ""
    out.print(
        f"[bold]{job.name}[/]: {job.task}, {job.num_nodes} x {job.nproc_per_node} processes{resumes}\n"
        f"[dim]state and logs: {escape(str(state.directory))}[/]"
    )


def _already_finished(arguments: argparse.Namespace, loaded: Loaded, state: State, status: Object) -> int:
    """Reports the earlier result; 1 if the manifest has changed since, which has not been run."""
    assert loaded.job is not None
    changed = _changes(state.read_manifest(), loaded.raw)
    again = f"mtj run {escape(str(arguments.file))} --again"
    ways = (
        f"[bold]{again}[/] continues from its newest checkpoint with the current manifest; under another "
        "metadata.name (and another save) it starts from scratch."
    )
    if not changed:
        out.print(f"[bold]{loaded.job.name}[/] has already finished. {ways}")
        _show_result(loaded.job, state, status)
        return OK
    lines = "".join(f"\n  {escape(line)}" for line in changed)
    out.print(
        f"[bold]{loaded.job.name}[/] has finished with a different manifest; nothing was run. Changed since:{lines}"
    )
    out.print(f"To train this: {ways}")
    return FAILED


def _report_result(job: Job, state: State, result: Result) -> int:
    if result.ending in ("interrupted", "suspended"):
        status_command.show(job.name, result.status)
        out.print("Stopped; run the same command to continue from the newest checkpoint.")
        return 128 + result.signal if result.ending == "interrupted" else OK
    _show_result(job, state, result.status)
    return OK if result.ending == "succeeded" else FAILED


def _show_result(job: Job, state: State, status: Object) -> None:
    """Prints the result and where the outputs are."""
    status_command.show(job.name, status)
    progress = state.read_progress()
    lies = dict(progress.outputs) if progress else {}
    if progress and progress.report_path:
        lies["report"] = progress.report_path
    failed_pod = status.get("lastFailure", {}).get("pod") if status.get("phase") == "Failed" else None
    if failed_pod:
        lies["log"] = str(state.log(failed_pod))
    for name, path in lies.items():
        out.print(f"[dim]{escape(name)}:[/] {escape(_shown(path))}")
    for dropped in dropped_rows.lines(progress):
        out.print(f"[yellow]data:[/] {escape(dropped)}")


def _shown(path: str) -> str:
    """The path relative to the working directory if that is shorter."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path


def ignored_here(job: Job) -> tuple[str, ...]:
    """One line for each part of a manifest that has no effect on one machine."""
    return (*_environment(job), *_containers(job), *_scheduling(job))


def _environment(job: Job) -> Iterator[str]:
    for entry in job.env:
        if "valueFrom" in entry:
            yield f"spec.env {entry['name']}: valueFrom is not read here; this shell's variable with that name is used"
    if job.env_from or any(each.env_from for each in job.initializers):
        yield "envFrom is not read here; the variables of this shell are used"


def _containers(job: Job) -> Iterator[str]:
    for template in (job.pod_template, job.master_template, job.worker_template):
        for container in template.get("spec", {}).get("containers") or ():
            if container["name"] != names.CONTAINER:
                yield f"container {container['name']} is not started here"


def _scheduling(job: Job) -> Iterator[str]:
    if job.scheduling.gang != "None" or job.kueue_queue:
        yield "queues and gang scheduling have no effect here; all pods start at once"
    if job.scheduling.spares:
        yield "scheduling.spares has no effect here; one machine has no node to spare"
    if job.failure_policy.node_exclusion is not None:
        yield "failurePolicy.nodeExclusion has no effect here; there is no other node"
    if job.run_policy.ttl_s is not None:
        yield "ttlSecondsAfterFinished has no effect here; the state folder stays"


def _changes(before: Object, after: Object) -> list[str]:
    """One line a changed field of the spec, such as `spec.args.lr: 0.0001 -> 0.001`, in the order of their names."""
    old, new = (dict(_leaves("spec", manifest.get("spec", {}))) for manifest in (before, after))
    differing = sorted(path for path in {**old, **new} if old.get(path, _ABSENT) != new.get(path, _ABSENT))
    return [f"{path}: {_value(path, old)} -> {_value(path, new)}" for path in differing]


def _value(path: str, values: Mapping[str, str]) -> str:
    if path not in values:
        return _ABSENT
    return shown.HIDDEN if shown.is_secret(path) else shown.without_secrets(values[path])


def _leaves(path: str, value: object) -> Iterator[tuple[str, str]]:
    """Every field below `path` with its value as JSON; a list is one value."""
    if isinstance(value, Mapping) and value:
        for name, part in value.items():
            yield from _leaves(f"{path}.{name}", part)
    else:
        yield path, json.dumps(value, ensure_ascii=False, default=str)
