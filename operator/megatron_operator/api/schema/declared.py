"""Fields of the manifest, declared on the dataclass that holds them: one declaration yields schema and reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import Field, field, fields
from typing import Any, ClassVar, Protocol

from megatron_operator.api.schema.parts import Schema, record

Object = Mapping[str, Any]
Wrap = Callable[[dict[str, Schema]], Schema]


class Declared(Protocol):
    """A dataclass with `declared` fields."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


def declared(name: str, schema: Schema, *, of: type[Declared] | None = None, absent: Any = None) -> Any:  # noqa: ANN401
    """A field that the manifest calls `name`; "outer.inner" is nested in an object there.

    of: the dataclass of the object, or of each item of a list. absent: the value if the manifest has none and its
    schema has no default; an absent list is empty.
    """
    absent = () if schema.get("type") == "array" else absent
    return field(metadata={"name": name, "schema": schema, "of": of, "absent": absent})


def record_of(
    kind: type[Declared], help: str, *, required: tuple[str, ...] = (), inner: Mapping[str, Wrap] | None = None
) -> Schema:
    """The schema of the fields of `kind`, in their order. inner: builds the schema of a nested object."""
    found: dict[str, Any] = {}
    for each in fields(kind):
        outer, _, name = each.metadata["name"].partition(".")
        schema = each.metadata["schema"]
        found[outer] = {**found.get(outer, {}), name: schema} if name else schema
    wraps = inner or {}
    return record(
        help, {name: wraps[name](each) if name in wraps else each for name, each in found.items()}, required=required
    )


def read[Value: Declared](kind: type[Value], given: Object, **others: object) -> Value:
    """The dataclass for a valid object with defaults filled in.

    others: the fields of `kind` that the manifest does not declare.
    """
    declarations = {each.name: each.metadata for each in fields(kind) if "schema" in each.metadata}
    return kind(**{name: _value(declaration, given) for name, declaration in declarations.items()}, **others)


def _value(declaration: Mapping[str, Any], given: Object) -> Any:  # noqa: ANN401 (as the field is declared)
    value: Any = given
    for part in declaration["name"].split("."):
        value = (value or {}).get(part)
    of = declaration["of"]
    if value is None:
        return declaration["absent"]
    if isinstance(value, list | tuple):
        return tuple(read(of, each) if of else each for each in value)
    return read(of, value) if of else value
