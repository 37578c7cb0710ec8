"""Rules for environment variables that a manifest gives the trainer."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from megatron_trainjob import environment
from megatron_trainjob.args.pixels import NAMES, UNREAD, VARIABLES
from megatron_trainjob.args.tree import OF_VARIABLES
from megatron_trainjob.violation import Violation

SET_BY_OPERATOR = "is set by the operator; remove it"


@dataclass(frozen=True, kw_only=True)
class Variable:
    """A variable, and where its name and its value stand. value: None where it comes from elsewhere."""

    name: str
    value: object
    name_path: str
    path: str


def problem(variable: Variable) -> Violation | None:
    """Why the manifest must not set this variable, or not to this value."""
    name = variable.name
    if name in environment.RESERVED:
        return Violation(path=variable.name_path, value=name, message=SET_BY_OPERATOR)
    if name in OF_VARIABLES or name in VARIABLES:
        argument = OF_VARIABLES.get(name) or f"model_kwargs: {{{VARIABLES[name]}: ...}}"
        message = f"is not a variable of this trainer, which would ignore it; use spec.args.{argument}"
        return Violation(path=variable.name_path, value=name, message=message)
    if name in UNREAD:
        known = ", ".join(NAMES)
        message = f"is read by nothing here; remove it (the settings of images and videos in model_kwargs are {known})"
        return Violation(path=variable.name_path, value=name, message=message)
    wrong = "" if variable.value is None else environment.problem(name, str(variable.value))
    return Violation(path=variable.path, value=variable.value, message=f"{name} {wrong}") if wrong else None


def unknown(variables: Iterable[Variable]) -> Iterator[tuple[str, object, str]]:
    """(path, value, message) of each variable that bears the trainer's prefix and is none of it."""
    for variable in variables:
        if not environment.looks_ours(variable.name) or variable.name in environment.OURS:
            continue
        near = difflib.get_close_matches(variable.name, sorted(environment.SETTABLE), n=1)
        known = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(environment.SETTABLE))}"
        yield variable.name_path, variable.name, f"is not a variable of this trainer, which ignores it; {known}"
