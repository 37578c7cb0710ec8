"""Small builders for structural OpenAPI schemas. Each returns a new dict; none knows a field of the job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Schema = dict[str, Any]
Change = Literal["WhileSuspended", "Always", "Never"]
LARGEST_INTEGER = 2**31 - 1


@dataclass(frozen=True)
class Pattern:
    """A regular expression and its description for people: the rest of "must be ..."."""

    expression: str
    words: str


QUANTITY = Pattern(r"^[0-9]+(\.[0-9]+)?([numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]+)?$", "a quantity such as 8, 500m or 64Gi")


def text(help: str, *, default: str | None = None, pattern: Pattern | None = None, max_length: int = 253) -> Schema:
    """A string."""
    extra = {"maxLength": max_length, "default": default}
    return {"type": "string", "description": help, **_given(extra), **_matching(pattern)}


def choice(help: str, *choices: str, default: str | None = None) -> Schema:
    """One of a closed set of strings."""
    return {"type": "string", "description": help, "enum": list(choices), **_given({"default": default})}


def integer(help: str, *, ge: int = 0, le: int = LARGEST_INTEGER, default: int | None = None) -> Schema:
    """A whole number between two bounds."""
    return {"type": "integer", "description": help, "minimum": ge, "maximum": le, **_given({"default": default})}


def boolean(help: str, *, default: bool | None = None) -> Schema:
    """True or false."""
    return {"type": "boolean", "description": help, **_given({"default": default})}


def int_or_text(help: str, *, default: str | None = None, pattern: Pattern | None = None) -> Schema:
    """A whole number or a string."""
    extra = {"default": default}
    return {"x-kubernetes-int-or-string": True, "description": help, **_given(extra), **_matching(pattern)}


def quantity(help: str) -> Schema:
    """A Kubernetes quantity such as 8, 500m or 64Gi."""
    return int_or_text(help, pattern=QUANTITY)


def record(help: str, properties: Mapping[str, Schema], *, required: tuple[str, ...] = ()) -> Schema:
    """An object of ours with exactly these fields; the mark "x-record" distinguishes it from Kubernetes' objects."""
    needs = {"required": list(required)} if required else {}
    return {"type": "object", "description": help, "properties": dict(properties), "x-record": True, **needs}


def open_object(help: str) -> Schema:
    """An object whose fields the API server does not check."""
    return {"type": "object", "description": help, "x-kubernetes-preserve-unknown-fields": True}


def array(help: str, items: Schema, *, max_items: int = 64) -> Schema:
    """A list."""
    return {"type": "array", "description": help, "items": items, "maxItems": max_items}


def text_map(help: str, *, max_properties: int = 128, max_length: int = 4096) -> Schema:
    """An object from any name to a string."""
    values = {"type": "string", "maxLength": max_length}
    return {
        "type": "object",
        "description": help,
        "additionalProperties": values,
        "maxProperties": max_properties,
    }


def described(schema: Mapping[str, Any], help: str) -> Schema:
    """The schema with this description."""
    return {**schema, "description": help}


def defaulted(schema: Mapping[str, Any]) -> Schema:
    """The object, created for its fields' defaults if the manifest has none; the mark "x-defaulted" is ours."""
    return {**schema, "x-defaulted": True}


def changeable(when: Change, schema: Mapping[str, Any]) -> Schema:
    """The field, marked with when it and all below it may change; the mark "x-change" is ours and no server sees it."""
    return {**schema, "x-change": when}


def changes(
    schema: Mapping[str, Any], path: str = "", inherited: Change = "WhileSuspended"
) -> Iterator[tuple[str, Change]]:
    """(path, when it may change) of every field below one of our records, outermost first."""
    for name, part in schema["properties"].items():
        when: Change = part.get("x-change", inherited)
        yield f"{path}{name}", when
        if part.get("x-record"):
            yield from changes(part, f"{path}{name}.", when)


def _matching(pattern: Pattern | None) -> Schema:
    """The pattern with its description; the mark "x-words" is ours and no server sees it."""
    return {} if pattern is None else {"pattern": pattern.expression, "x-words": pattern.words}


def _given(extra: Mapping[str, Any]) -> Schema:
    return {key: value for key, value in extra.items() if value is not None}
