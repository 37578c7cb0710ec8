"""Turns a mapping of user-given arguments into `TrainArgs`, or into all violations at once.

Independent of the source of the mapping (cli, yaml_file, a manifest) and of the size of the cluster.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from megatron_trainjob.args import fulfilled, rules
from megatron_trainjob.args.availability import objection, remark
from megatron_trainjob.args.field import Argument, Task
from megatron_trainjob.args.names import explain_unknown, explain_value, find_alias
from megatron_trainjob.args.tree import ARGUMENTS, TrainArgs
from megatron_trainjob.args.value import WrongValue, read_value
from megatron_trainjob.violation import Severity, Violation, errors, told_once, warnings


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """Valid arguments; `given` holds the canonical names that the user set."""

    args: TrainArgs
    given: frozenset[str]
    warnings: tuple[Violation, ...] = ()
    violations: ClassVar[tuple[Violation, ...]] = ()


@dataclass(frozen=True, kw_only=True)
class Refused:
    """All violations of the given arguments; never empty."""

    violations: tuple[Violation, ...]
    warnings: tuple[Violation, ...] = ()


Parsed = Accepted | Refused


@dataclass
class _Reading:
    """The state of parsing one mapping. named: as the user calls an argument -> its own name."""

    values: dict[str, Any] = field(default_factory=dict)
    named: dict[str, str] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    found: list[Violation] = field(default_factory=list)


def parse(
    mapping: Mapping[str, object],
    *,
    task: Task,
    path: str = "spec.args",
    world_size: int | None = None,
    hf_config: Mapping[str, Any] | None = None,
) -> Parsed:
    """The arguments of `task`, or every violation: names, types, choices, ranges, status, rules.

    A null value counts as not given. Rules about the number of ranks or the model's config.json are checked if those
    are given; otherwise callers use `rules.check` once they know them.
    """
    reading = _Reading()
    for name, value in mapping.items():
        if value is not None:
            _read_one(reading, name, value, task, path)
    defaults, num_read = task_defaults(task), len(reading.values)
    args = TrainArgs(**{**defaults, **reading.values})
    for name in fulfilled.names(args, reading.values, task):
        del reading.values[name]
    for name, canonical in reading.named.items():
        if canonical in reading.values:
            _judge(reading, name, ARGUMENTS[canonical], task, path)
    given = frozenset(reading.values)
    if len(given) < num_read:  # hundreds of fields take a tenth of a millisecond, and an operator reads many jobs
        args = TrainArgs(**{**defaults, **reading.values})
    found = rules.check(
        args,
        given,
        task=task,
        world_size=world_size,
        hf_config=hf_config,
        path=path,
        broken=frozenset(reading.broken),
    )
    found = told_once((*reading.found, *found), lambda each: reading.named.get(each.path.rpartition(".")[2], each.path))
    if violations := errors(found):
        return Refused(violations=violations, warnings=warnings(found))
    return Accepted(args=args, given=given, warnings=warnings(found))


def task_defaults(task: Task) -> dict[str, Any]:
    """The defaults that this task overrides."""
    return {name: arg.task_defaults[task] for name, arg in ARGUMENTS.items() if task in arg.task_defaults}


def _read_one(reading: _Reading, name: str, value: object, task: Task, path: str) -> None:
    alias = find_alias(name, task)
    argument = ARGUMENTS.get(alias.canonical if alias else name)

    def say(message: str, severity: Severity) -> None:
        seen = "(hidden)" if argument and argument.secret else value
        reading.found.append(Violation(path=f"{path}.{name}", value=seen, message=message, severity=severity))

    def refuse(message: str) -> None:
        say(message, "error")

    if argument is None:
        return refuse(explain_unknown(name, task))
    if alias:
        say(_renamed(argument, inverted=alias.inverted), "warning")
    try:
        converted = read_value(argument, value)
    except WrongValue as wrong:
        reading.broken.add(argument.name)
        return refuse(explain_value(argument.name, value) or str(wrong))
    if alias and alias.inverted:
        converted = not converted
    if argument.name in reading.values and reading.values[argument.name] != converted:
        return refuse(f"is an alias of {argument.name}, which has a different value; remove one of them")
    reading.values[argument.name], reading.named[name] = converted, argument.name
    return None


def _judge(reading: _Reading, name: str, argument: Argument, task: Task, path: str) -> None:
    """Whether a well-formed value is accepted; one that only other tasks read is not kept, so nothing can read it."""
    value = reading.values[argument.name]
    refusal, warning = objection(argument, value, task), remark(argument, value, task)
    if refusal:
        reading.broken.add(argument.name)
    elif task not in argument.applies_to:
        del reading.values[argument.name]
    if refusal or warning:
        seen = "(hidden)" if argument.secret else value
        severity: Severity = "error" if refusal else "warning"
        problem = Violation(path=f"{path}.{name}", value=seen, message=refusal or warning, severity=severity)
        reading.found.append(problem)


def _renamed(argument: Argument, *, inverted: bool) -> str:
    opposite = "the opposite of " if inverted else ""
    return f"is another name of {opposite}{argument.name}; write {argument.name}"
