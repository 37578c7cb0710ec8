"""Parses a manifest into a Job, or all violations at once; shared by operator, webhook and command line.

Shape and defaults come from `schema`, arguments from the contract, the rest from `rules`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

from megatron_operator.api import names
from megatron_operator.api.schema import structural
from megatron_operator.api.spec import spec_schema
from megatron_operator.core.job import Job
from megatron_operator.manifest import accelerators, rules
from megatron_operator.manifest.build import build
from megatron_trainjob import images
from megatron_trainjob.args.field import TRAINING_TASKS, TrainingTask
from megatron_trainjob.args.names import find_alias
from megatron_trainjob.args.parse import Parsed, Refused
from megatron_trainjob.args.parse import parse as parse_args
from megatron_trainjob.args.tree import ARGUMENTS
from megatron_trainjob.violation import Violation, as_errors

Object = Mapping[str, Any]
KINDS_OF_RLHF = ARGUMENTS["rlhf_type"].choices or ()
TOP_LEVEL = frozenset({"apiVersion", "kind", "metadata", "spec", "status"})


def parse(
    manifest: object,
    *,
    hf_config: Object | None = None,
    default_image: str = images.TRAINER,
    strict: bool = False,
) -> Job | tuple[Violation, ...]:
    """The job, or all problems of the manifest.

    hf_config: the model's config.json if it can be read; without it, rules about the model are skipped.
    default_image: image for a manifest without one. strict: warnings are errors, as with spec.strict.
    """
    if not isinstance(manifest, Mapping) or not isinstance(manifest.get("spec"), Mapping):
        return (Violation(path="spec", value=None, message="is required; see docs/fields.md and examples/"),)
    given = manifest["spec"]
    fields = {key: value for key, value in given.items() if key != "args"}
    shape = tuple(_check_shape(fields))
    spec = structural.defaulted(_without_broken(fields, shape), spec_schema())
    nproc = nproc_per_node(spec)
    arguments = _read_arguments(given.get("args"), given.get("task"), spec["numNodes"] * nproc, hf_config)
    violations = _unique(
        (
            *_check_header(manifest),
            *shape,
            *rules.check(manifest.get("metadata") or {}, spec),
            *arguments.violations,
        )
    )
    if isinstance(arguments, Refused) or violations:
        return violations
    job = build(manifest, spec, arguments, nproc_per_node=nproc, default_image=default_image)
    return as_errors(job.warnings) if job.warnings and (strict or spec["strict"]) else job


def _check_shape(spec: Object) -> Iterator[Violation]:
    """Problems of the fields beside args; an argument among them belongs into args."""
    schema = spec_schema()
    with_args = {**schema, "properties": {**schema["properties"], "args": {"type": "object"}}}
    for problem in structural.check(spec, with_args, "spec"):
        name = problem.path.removeprefix("spec.")
        is_argument = name in ARGUMENTS or find_alias(name, "sft") is not None
        if name == "task" and problem.value in KINDS_OF_RLHF:
            message = f"is a kind of rlhf; set task: rlhf and spec.args.rlhf_type: {problem.value}"
        elif is_argument and name not in schema["properties"]:
            message = f"is an argument; move it to spec.args.{name}"
        else:
            message = problem.message
        yield replace(problem, message=message)


def nproc_per_node(spec: Object) -> int:
    """Processes per pod; "auto" is the number of devices that each pod requests, or 1 without any."""
    value = str(spec["nprocPerNode"])
    return accelerators.count(spec.get("resourcesPerNode") or {}) or 1 if value == "auto" else int(value)


def _without_broken(given: Object, violations: Iterable[Violation]) -> Object:
    """The valid fields, for the other checks."""
    broken = {re.split(r"[.\[]", violation.path)[1] for violation in violations}
    return {key: value for key, value in given.items() if key not in broken}


def _check_header(manifest: Object) -> Iterable[Violation]:
    for field, wanted in (("apiVersion", names.API_VERSION), ("kind", names.KIND)):
        if manifest.get(field) != wanted:
            yield Violation(path=field, value=manifest.get(field), message=f"must be {wanted}")
    for field in manifest:
        if field not in TOP_LEVEL:
            yield Violation(path=str(field), value=manifest[field], message="unknown field; move it under spec")
    name = (manifest.get("metadata") or {}).get("name")
    if not isinstance(name, str) or not re.fullmatch(names.JOB_NAME_PATTERN, name):
        message = "must consist of lower-case letters, digits and '-' and start with a letter, because a Service has it"
        yield Violation(path="metadata.name", value=name, message=message)
    elif len(name) > names.MAX_JOB_NAME_LENGTH:
        message = (
            f"must not be longer than {names.MAX_JOB_NAME_LENGTH} characters, because pod names are derived from it"
        )
        yield Violation(path="metadata.name", value=name, message=message)


def _read_arguments(given: object, task: object, world_size: int, hf_config: Object | None) -> Parsed:
    """The arguments, with all violations of their own and with the job's size and the model."""
    if given is not None and not isinstance(given, Mapping):
        wrong = Violation(path="spec.args", value=given, message="must be a mapping of argument names to values")
        return Refused(violations=(wrong,))
    read = [parse_args(given or {}, task=each, world_size=world_size, hf_config=hf_config) for each in _tasks(task)]
    return min(read, key=lambda parsed: len(parsed.violations))


def _tasks(written: object) -> tuple[TrainingTask, ...]:
    """The task, or those that may be meant: another one would object to arguments that are right."""
    if written in TRAINING_TASKS:
        return (written,)
    if written in KINDS_OF_RLHF:
        return ("rlhf",)
    near = difflib.get_close_matches(str(written).lower(), TRAINING_TASKS, n=1)
    return (cast(TrainingTask, near[0]),) if near else TRAINING_TASKS


def _unique(violations: Iterable[Violation]) -> tuple[Violation, ...]:
    by_text = {(violation.path, violation.message): violation for violation in violations}
    return tuple(by_text.values())
