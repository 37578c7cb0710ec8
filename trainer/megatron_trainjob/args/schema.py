"""The arguments as an OpenAPI v3 structural schema, for the custom resource definition; admission.py has the rules.

No defaults: an unset argument stays unset, and status shows its effective value. Nothing is nullable: the API server
then drops a null, which is the meaning of null here (it cannot validate one against an enum). Every list, string and
map has a bound, from which the API server estimates the cost of CEL.
"""

from __future__ import annotations

from typing import Any

from megatron_trainjob.args.field import Argument
from megatron_trainjob.args.names import ALIASES
from megatron_trainjob.args.tree import ARGUMENTS

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
        "x-record": True,
    }


def _property(argument: Argument) -> dict[str, Any]:
    return {"description": _description(argument), **_type(argument)}


def _alias_property(argument: Argument, *, inverted: bool) -> dict[str, Any]:
    opposite = "the opposite of " if inverted else ""
    return {**_property(argument), "description": f"ms-swift 4.x name of {opposite}{argument.name}."}


def _description(argument: Argument) -> str:
    unit = f" Unit: {argument.unit}." if argument.unit else ""
    is_explained = argument.status in ("refused", "no effect")
    status = f" {argument.status.capitalize()}: {argument.reason}." if is_explained else ""
    return argument.help + unit + status


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
            return _list(_text(argument))
        case "list[int]":
            return _list({"type": "integer", "format": "int64", **_range(argument)})
        case "list[float]":
            return _list({"type": "number", **_range(argument)})
        case "json":
            return {"type": "object", "maxProperties": LARGEST_OBJECT, **ANYTHING}
        case _:
            return dict(ANYTHING)


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "maxItems": LONGEST_LIST, "items": items}


def _text(argument: Argument) -> dict[str, Any]:
    if argument.choices is None:
        return {"type": "string", "maxLength": LONGEST_TEXT}
    return {"type": "string", "enum": [*argument.choices, *argument.spellings]}


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
