"""How one argument is declared (`arg(...)` in the group files) and described (`Argument`, for every reader).

Type, nullability and choices come from the annotation, so nothing is repeated. Declares no argument.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

TrainingTask = Literal["pt", "sft", "rlhf"]
TRAINING_TASKS: tuple[TrainingTask, ...] = get_args(TrainingTask)
Task = Literal[TrainingTask, "export"]
Status = Literal["works", "works on GPU only", "no effect", "refused", "not yet"]
Scalar = str | int | float | bool

TRAINING: tuple[Task, ...] = ("pt", "sft", "rlhf")
EVERY_TASK: tuple[Task, ...] = ("pt", "sft", "rlhf", "export")
TYPE_NAMES = {int: "int", float: "float", str: "str", bool: "bool", Mapping: "json"}


@dataclass(frozen=True, kw_only=True)
class Details:
    """Details of an argument beyond its annotation and default."""

    help: str
    status: Status
    unit: str = ""
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    featured: bool = False
    aliases: tuple[str, ...] = ()
    inverted_aliases: tuple[str, ...] = ()
    applies_to: tuple[Task, ...] = TRAINING
    essential: bool = False
    task_defaults: Mapping[Task, Scalar] = dataclasses.field(default_factory=dict)
    reason: str = ""
    refused_choices: Mapping[Scalar, str] = dataclasses.field(default_factory=dict)
    warned_choices: Mapping[Scalar, str] = dataclasses.field(default_factory=dict)
    spellings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fulfilled: tuple[Scalar, ...] = ()
    hf_config_keys: tuple[str, ...] = ()
    fallback: Scalar | None = None
    secret: bool = False


def arg(default: Any, help: str, **details: Any) -> Any:  # noqa: ANN401 (a dataclass field stands for any type)
    """A dataclass field with this default and description; the keywords are those of `Details`.

    `aliases` are other accepted names; `inverted_aliases` have the opposite value.
    `status` is its current support in the trainer; "refused" and "no effect" need a `reason`, `refused_choices`
    gives the reason for single values, `warned_choices` warnings for accepted values. An argument without effect is
    accepted with its reason as a warning, or without one if the value is `fulfilled`. `task_defaults` replaces the
    default for some tasks. `fallback` is the value if the argument is unset and the model's config.json has none of
    `hf_config_keys`. `spellings` are other texts for some of its choices. `secret` keeps the value out of
    messages. `essential`: whoever sets it in a task to which it does not apply wants something else than that task
    makes; others have no effect there.
    """
    return dataclasses.field(default=default, metadata={"details": Details(help=help, **details)})


@dataclass(frozen=True, kw_only=True)
class Argument(Details):
    """One argument, complete: name, type, default, choices and every detail of its declaration.

    `type` is one of int, float, str, bool, json, str|json, list[str], list[int], list[float].
    `nullable` means that an absent value has its own meaning. `choices` are those of each element for a list.
    """

    name: str
    group: str
    type: str
    nullable: bool
    default: Any
    choices: tuple[str, ...] | None

    def default_for(self, task: Task) -> Any:  # noqa: ANN401 (arguments have eight types)
        """The value that an unset argument has in this task."""
        return self.task_defaults.get(task, self.default)

    @property
    def is_list(self) -> bool:
        """Whether the value is a list."""
        return self.type.startswith("list")


def describe_group(name: str, group: type) -> dict[str, Argument]:
    """The arguments that a group class declares itself, in its order."""
    hints = get_type_hints(group)
    own = [field for field in dataclasses.fields(group) if field.name in group.__annotations__]
    return {field.name: _describe(name, field, hints[field.name]) for field in own}


def _describe(group: str, field: dataclasses.Field[Any], hint: Any) -> Argument:  # noqa: ANN401 (any annotation)
    details: Details = field.metadata["details"]
    type_name, nullable, choices = _read_annotation(hint)
    shallow = {item.name: getattr(details, item.name) for item in dataclasses.fields(details)}
    return Argument(
        name=field.name,
        group=group,
        type=type_name,
        nullable=nullable,
        default=field.default,
        choices=choices,
        **shallow,
    )


def _read_annotation(hint: Any) -> tuple[str, bool, tuple[str, ...] | None]:  # noqa: ANN401 (any annotation)
    """(type name, nullable, choices) of an annotation such as `tuple[Literal["a", "b"], ...] | None`."""
    members = list(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else [hint]
    nullable = types.NoneType in members
    members = [member for member in members if member is not types.NoneType]
    names: list[str] = []
    choices: tuple[str, ...] | None = None
    for member in members:
        origin = get_origin(member)
        if origin is Literal:
            names, choices = [*names, "str"], get_args(member)
        elif origin is tuple:
            element, _, choices = _read_annotation(get_args(member)[0])
            names.append(f"list[{element}]")
        else:
            names.append(TYPE_NAMES[origin or member])
    return "|".join(names), nullable, choices
