"""Loads a job from a file on the command line, with every check that this machine can make."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from megatron_operator import manifest
from megatron_operator.api import names
from megatron_operator.cluster.local import machine as local_machine
from megatron_operator.cluster.local.paths import Folders
from megatron_operator.core.job import Job
from megatron_trainjob.args import yaml_file
from megatron_trainjob.args.yaml_file import YamlProblem
from megatron_trainjob.violation import Violation

Object = Mapping[str, Any]
STATE_DIRECTORY = Path(".mtj")


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A parsed manifest, and its job or its problems."""

    raw: Object
    job: Job | None
    violations: tuple[Violation, ...] = ()
    hf_config: Object | None = None
    mounts: Mapping[str, Path | None] = field(default_factory=dict)


def add_manifest(command: argparse.ArgumentParser) -> None:
    """The arguments of every command that reads a manifest."""
    command.add_argument("file", help="the manifest (YAML); - reads standard input")
    add_volumes(command)


def add_volumes(command: argparse.ArgumentParser) -> None:
    """The arguments that bind volumes to folders of this machine."""
    command.add_argument(
        "--volume",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="folder that stands for a claim or volume of the manifest; may be repeated",
    )
    command.add_argument(
        "--state-dir", type=Path, default=STATE_DIRECTORY, help="where jobs of this machine live (default .mtj)"
    )


def load(arguments: argparse.Namespace, *, local: bool, strict: bool = False) -> Loaded:
    """The one manifest of a command line with all of its problems.

    local: the job will run here, so "auto" counts this machine's GPUs. strict: warnings are errors.
    """
    jobs, problem = _read(arguments.file)
    if len(jobs) > 1:
        message = f"must contain exactly one {names.KIND}; split the file"
        problem = Violation(path=arguments.file, value=f"{len(jobs)} of them", message=message)
    return _unread(problem) if problem else _loaded(jobs[0], arguments, local=local, strict=strict)


def load_all(arguments: argparse.Namespace, *, strict: bool = False) -> list[Loaded]:
    """Every manifest of a command line with all of its problems, one of which is the name of an earlier one."""
    jobs, problem = _read(arguments.file)
    if problem:
        return [_unread(problem)]
    loaded = [_loaded(each, arguments, local=False, strict=strict) for each in jobs]
    places = [_identity(each) for each in jobs]
    return [
        _again(each, place) if place in places[:index] else each
        for index, (each, place) in enumerate(zip(loaded, places, strict=True))
    ]


def _identity(raw: Object) -> tuple[str, str]:
    metadata = raw.get("metadata") or {}
    return str(metadata.get("namespace", "")), str(metadata.get("name", ""))


def _again(loaded: Loaded, place: tuple[str, str]) -> Loaded:
    message = "another job of this file has this name, and the cluster would keep only the last; give each its own"
    problem = Violation(path="metadata.name", value=place[1], message=message)
    return replace(loaded, job=None, violations=(*loaded.violations, problem))


def _unread(problem: Violation) -> Loaded:
    return Loaded(raw={}, job=None, violations=(problem,))


def _loaded(raw: Object, arguments: argparse.Namespace, *, local: bool, strict: bool) -> Loaded:
    bound, wrong = bindings(arguments.volume)
    if local:
        raw = local_machine.with_local_processes(raw, local_machine.num_gpus())
    mounted = local_machine.mounts(raw, _folders(raw, arguments.state_dir, bound), runs_here=local)
    hf_config = local_machine.read_hf_config(raw, mounted)
    parsed = manifest.parse(raw, hf_config=hf_config, strict=strict)
    found = () if isinstance(parsed, Job) else parsed
    args = parsed.args if isinstance(parsed, Job) else None
    violations = (*wrong, *found, *local_machine.missing_files(raw, mounted, args))
    job = parsed if isinstance(parsed, Job) and not violations else None
    return Loaded(raw=raw, job=job, violations=violations, hf_config=hf_config, mounts=mounted)


def bindings(words: list[str]) -> tuple[dict[str, Path], list[Violation]]:
    """NAME=FOLDER words as a mapping, and their problems."""
    bound, wrong = {}, []
    for word in words:
        name, separator, folder = word.partition("=")
        if not separator or not name or not folder:
            wrong.append(Violation(path="--volume", value=word, message="must be NAME=FOLDER"))
        elif not Path(folder).is_dir():
            wrong.append(Violation(path="--volume", value=word, message="the folder does not exist; create it first"))
        else:
            bound[name] = Path(folder).absolute()
    return bound, wrong


def _folders(raw: Object, state_directory: Path, bound: Mapping[str, Path]) -> Folders:
    name = (raw.get("metadata") or {}).get("name")
    directory = state_directory / str(name)
    return Folders(volumes=directory / "volumes", scratch=directory / "scratch", bound=bound)


def _with_remedy(problem: str) -> str:
    """What is wrong with a file, and what to do where the reader names the fault alone."""
    said = problem.lstrip(": ")
    return said if "; " in said else f"{said}; correct the YAML"


def _read(file: str) -> tuple[list[Object], Violation | None]:
    """The jobs of a file, at least one if there is no problem; its other documents (claims, secrets) are ignored."""
    try:
        source = yaml_file.parse_text(sys.stdin.read(), source="-") if file == "-" else yaml_file.load_all(Path(file))
    except YamlProblem as problem:
        return [], Violation(path=file, value=None, message=_with_remedy(str(problem).removeprefix(str(Path(file)))))
    except OSError as problem:
        message = f"cannot be read: {problem.strerror}; pass the path of a manifest, or - for standard input"
        return [], Violation(path=file, value=None, message=message)
    documents = [each for each in source if isinstance(each, Mapping)]
    jobs = [each for each in documents if each.get("kind") == names.KIND] or documents[:1]
    if jobs:
        return jobs, None
    message = f"must contain a {names.KIND}; correct kind"
    return [], Violation(path=file, value="0 of them", message=message)
