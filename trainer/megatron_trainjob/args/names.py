"""Resolves names of arguments: canonical names, names of ms-swift 4.x, nearest names."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from megatron_trainjob.args import pixels
from megatron_trainjob.args.field import TRAINING, Argument, Task
from megatron_trainjob.args.other_programs import (
    ELSEWHERE,
    FIELDS_OF_MEGATRON,
    OTHER_METHODS,
    OTHER_PREFIXES,
    OTHER_VALUES,
    PASSED_ON,
    WITHOUT_COUNTERPART,
)
from megatron_trainjob.args.tree import ARGUMENTS

CERTAIN = 0.8
"""Similarity above which a misspelled name is taken for another one: below it, most have another meaning."""

LISTED = "docs/arguments.md lists all of them"


@dataclass(frozen=True, kw_only=True)
class Alias:
    """Another name of an argument; with `inverted` its value is negated."""

    canonical: str
    inverted: bool


def _aliases(tasks: tuple[Task, ...]) -> dict[str, Alias]:
    """Every other name of the arguments of these tasks."""
    return {
        name: Alias(canonical=argument.name, inverted=inverted)
        for argument in ARGUMENTS.values()
        if set(tasks) & set(argument.applies_to)
        for inverted, names in ((False, argument.aliases), (True, argument.inverted_aliases))
        for name in names
    }


OF_EXPORT = _aliases(("export",))
"""Other names in an export, such as save, which is an argument of its own in training."""
ALIASES = {name: alias for name, alias in OF_EXPORT.items() if name not in ARGUMENTS} | _aliases(TRAINING)


def find_alias(name: str, task: Task) -> Alias | None:
    """The alias that `name` is in this task, or None.

    Some names are an argument in one task and an alias in another: output_dir belongs to export
    and means save in training.
    """
    if name in ARGUMENTS and task in ARGUMENTS[name].applies_to:
        return None
    return OF_EXPORT.get(name, ALIASES.get(name)) if task == "export" else ALIASES.get(name)


def nearest(name: str, task: Task) -> str | None:
    """The known argument of this task that `name` most likely meant."""
    simplified = _simplified(name)
    known = [argument.name for argument in ARGUMENTS.values() if task in argument.applies_to]
    known += [alias for alias in ALIASES if find_alias(alias, task)]
    shortened = [each for each in known if _is_short_for(simplified, each)]
    matches = difflib.get_close_matches(simplified, [*known, *ELSEWHERE], n=1, cutoff=CERTAIN) or shortened
    return ELSEWHERE.get(matches[0], matches[0]) if len(matches) == 1 else None


def _is_short_for(name: str, other: str) -> bool:
    """Whether the other name has all words of this one, which are several."""
    words = set(name.split("_"))
    return len(words) > 1 and words < set(other.split("_"))


def _simplified(name: str) -> str:
    return name.lower().replace("-", "_").lstrip("_")


def _of_another_task(name: str, task: Task) -> Argument | None:
    """The argument that is misspelled here, if this task does not have it and no argument of its own is as near."""
    matches = difflib.get_close_matches(_simplified(name), ARGUMENTS, n=1, cutoff=CERTAIN)
    return ARGUMENTS[matches[0]] if matches and task not in ARGUMENTS[matches[0]].applies_to else None


def explain_unknown(name: str, task: Task) -> str:
    """The message about an unknown name: the method it belongs to, or the nearest known name."""
    has_counterpart = name in pixels.NAMES or name in ELSEWHERE
    for method, (names, reason) in () if has_counterpart else OTHER_METHODS.items():
        if name in names or name.startswith(OTHER_PREFIXES.get(method, ("\0",))):
            return f"belongs to {method}, {reason}"
    if name in pixels.NAMES:
        return f"is a setting of images and videos; write it as model_kwargs: {{{name}: ...}}"
    simplified = _simplified(name)
    if reason := WITHOUT_COUNTERPART.get(simplified) or (PASSED_ON if simplified in FIELDS_OF_MEGATRON else ""):
        return f"unknown argument; it {reason}"
    if simplified not in ELSEWHERE and (other := _of_another_task(name, task)):
        return f"unknown argument; {other.name}, if that is meant, applies to {', '.join(other.applies_to)} only"
    suggestion = nearest(name, task)
    hint = f"did you mean {suggestion}?" if suggestion else LISTED
    return f"unknown argument; {hint}"


def explain_value(name: str, value: object) -> str:
    """The message about a value that this argument has in other programs, "" for any other."""
    return OTHER_VALUES.get((name, value), "") if isinstance(value, str) else ""
