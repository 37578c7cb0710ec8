"""The arguments as an OpenAPI v3 structural schema and as CEL rules, for the custom resource definition.

No defaults: an unset argument stays unset, and status shows what it became. Nothing is nullable: the API server
then drops a null, which is what a null means here (it cannot check one against an enum). Every list, text and map
has a bound, because the API server estimates the cost of CEL by them.
"""

from __future__ import annotations

from typing import Any

from megatron_trainjob.args.field import TRAINING, Argument
from megatron_trainjob.args.names import ALIASES
from megatron_trainjob.args.rules import RULES
from megatron_trainjob.args.rules.condition import cel_value, changed, is_
from megatron_trainjob.args.tree import ARGUMENTS
from megatron_trainjob.args.value import shown

LONGEST_TEXT = 4096
LONGEST_LIST = 256
LARGEST_OBJECT = 64

ANYTHING = {"x-kubernetes-preserve-unknown-fields": True}


def arguments_schema() -> dict[str, Any]:
    """The schema of spec.args: one property per argument, and one per name of ms-swift 4.x."""
    properties = {name: _property(argument) for name, argument in ARGUMENTS.items()}
    for name, alias in ALIASES.items():
        if name not in properties:
            properties[name] = _alias_property(ARGUMENTS[alias.canonical], inverted=alias.inverted)
    return {
        "type": "object",
        "description": "Arguments of the trainer; docs/arguments.md lists them.",
        "properties": properties,
    }


def cel_rules() -> list[dict[str, str]]:
    """The rules that CEL can say over spec.args alone, each with rule, message and fieldPath (of the argument)."""
    pairs = [
        _rule(rule.about[0], rule.cel, rule.cel_message)
        for rule in RULES.values()
        if rule.cel and set(TRAINING) <= set(rule.tasks)
    ]
    return [*_refusals(), *pairs]


def _refusals() -> list[dict[str, str]]:
    """One rule for every argument, and every value of one, that can never work; the default is accepted."""
    arguments = [
        _rule(name, f"!{changed(name).cel()}", f"is refused: {argument.reason}")
        for name, argument in ARGUMENTS.items()
        if argument.status == "refused" and set(TRAINING) <= set(argument.applies_to)
    ]
    choices = [
        _rule(name, f"!{is_(name, choice).cel()}", f"cannot be {shown(choice)}: {reason}")
        for name, argument in ARGUMENTS.items()
        for choice, reason in argument.refused_choices.items()
    ]
    return [*arguments, *choices]


def _rule(name: str, cel: str, message: str) -> dict[str, str]:
    return {"rule": cel, "message": f"{name} {message}", "fieldPath": f".{name}"}


def spec_cel_rules() -> list[dict[str, str]]:
    """The rules that CEL can say over spec: of tasks, and of the number of ranks when nprocPerNode is a number."""
    return [*_task_rules(), _world_size_rule()]


def _task_rules() -> list[dict[str, str]]:
    """Arguments of preference training are given only for task rlhf."""
    names = [argument.name for argument in ARGUMENTS.values() if argument.applies_to == ("rlhf",)]
    given = " || ".join(f"has(self.args.{name})" for name in names)
    return [
        {
            "rule": f"!has(self.args) || self.task == 'rlhf' || !({given})",
            "message": f"{', '.join(names)} belong to task rlhf; remove them or change the task",
            "fieldPath": ".args",
        }
    ]


def _world_size_rule() -> dict[str, str]:
    sizes = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
    product = " * ".join(cel_value(name).replace("self.", "self.args.") for name in sizes)
    ranks = "(has(self.numNodes) ? self.numNodes : 1) * int(self.nprocPerNode)"
    known = "has(self.args) && has(self.nprocPerNode) && type(self.nprocPerNode) == int"
    return {
        "rule": f"!({known}) || ({ranks}) % ({product}) == 0",
        "message": "numNodes * nprocPerNode must be a multiple of tensor_model_parallel_size *"
        " pipeline_model_parallel_size * context_parallel_size",
        "fieldPath": ".args",
    }


def _property(argument: Argument) -> dict[str, Any]:
    return {"description": _description(argument), **_type(argument)}


def _alias_property(argument: Argument, *, inverted: bool) -> dict[str, Any]:
    opposite = "the opposite of " if inverted else ""
    return {**_property(argument), "description": f"ms-swift 4.x name of {opposite}{argument.name}."}


def _description(argument: Argument) -> str:
    unit = f" Unit: {argument.unit}." if argument.unit else ""
    refused = f" Refused: {argument.reason}." if argument.status == "refused" else ""
    return argument.help + unit + refused


def _type(argument: Argument) -> dict[str, Any]:
    match argument.type:
        case "int":
            return {"type": "integer", "format": "int64", **_range(argument)}
        case "float":
            return {"type": "number", **_range(argument)}
        case "bool":
            return {"type": "boolean"}
        case "str":
            return _text(argument)
        case "list[str]":
            return {"type": "array", "maxItems": LONGEST_LIST, "items": _text(argument)}
        case "list[float]":
            return {
                "type": "array",
                "maxItems": LONGEST_LIST,
                "items": {"type": "number", **_range(argument)},
            }
        case "json":
            return {"type": "object", "maxProperties": LARGEST_OBJECT, **ANYTHING}
        case _:
            return dict(ANYTHING)


def _text(argument: Argument) -> dict[str, Any]:
    if argument.choices is None:
        return {"type": "string", "maxLength": LONGEST_TEXT}
    return {"type": "string", "enum": list(argument.choices)}


def _range(argument: Argument) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    if argument.ge is not None:
        limits["minimum"] = argument.ge
    if argument.gt is not None:
        limits |= {"minimum": argument.gt, "exclusiveMinimum": True}
    if argument.le is not None:
        limits["maximum"] = argument.le
    if argument.lt is not None:
        limits |= {"maximum": argument.lt, "exclusiveMaximum": True}
    return limits
