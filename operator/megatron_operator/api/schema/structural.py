"""Validates and defaults a value by a structural OpenAPI schema, like an API server, but reports every problem."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from megatron_trainjob.violation import Violation

Schema = Mapping[str, Any]

TYPES: dict[str, tuple[type, ...]] = {
    "object": (Mapping,),
    "array": (list, tuple),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}
EXPECTED = {
    "object": "must be a mapping: indent its fields below it",
    "array": "must be a list: one '- ' line for each entry",
    "string": "must be text; put it into quotes",
    "integer": "must be a whole number without quotes",
    "number": "must be a number without quotes",
    "boolean": "must be true or false without quotes",
}


def check(value: Any, schema: Schema, path: str) -> Iterator[Violation]:  # noqa: ANN401 (any YAML value)
    """All violations of the schema."""
    if value is None and schema.get("nullable"):
        return
    problem = _type_problem(value, schema)
    if problem:
        yield Violation(path=path, value=value, message=problem)
        return
    yield from (Violation(path=path, value=value, message=text) for text in _value_problems(value, schema))
    if isinstance(value, Mapping):
        yield from _check_object(value, schema, path)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from check(item, schema.get("items", {}), f"{path}[{index}]")


def defaulted(value: Any, schema: Schema) -> Any:  # noqa: ANN401 (any YAML value)
    """The value with the schema's defaults filled in; objects are created for the defaults of their fields."""
    if isinstance(value, Mapping):
        properties: Mapping[str, Schema] = schema.get("properties", {})
        filled = {
            name: _default(part) for name, part in properties.items() if value.get(name) is None and _has_default(part)
        }
        given = {name: defaulted(item, properties.get(name, {})) for name, item in value.items() if item is not None}
        return {**filled, **given}
    if isinstance(value, (list, tuple)):
        return [defaulted(item, schema.get("items", {})) for item in value]
    return value


def nearest(name: str, known: Mapping[str, Any]) -> str | None:
    """The known name that is most like this one, whatever its case and underscores."""
    folded = {_fold(each): each for each in known}
    close = difflib.get_close_matches(_fold(name), folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else None


def _fold(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


def _has_default(schema: Schema) -> bool:
    return "default" in schema or bool(schema.get("x-defaulted"))


def _default(schema: Schema) -> Any:  # noqa: ANN401 (any YAML value)
    return schema["default"] if "default" in schema else defaulted({}, schema)


def _check_object(value: Mapping[str, Any], schema: Schema, path: str) -> Iterator[Violation]:
    properties: Mapping[str, Schema] = schema.get("properties", {})
    others = schema.get("additionalProperties")
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or not (properties or others)
    for name in schema.get("required", ()):
        if value.get(name) is None:
            yield Violation(path=f"{path}.{name}", value=None, message=_missing(properties.get(name, {})))
    for name, item in value.items():
        part = properties.get(name, others)
        if part is not None and (item is not None or part.get("nullable")):
            yield from check(item, part, f"{path}.{name}")
        elif part is None and not is_open:
            yield Violation(path=f"{path}.{name}", value=item, message=_unknown(str(name), properties))


def _missing(schema: Schema) -> str:
    return f"is required; one of {', '.join(schema['enum'])}" if "enum" in schema else "is required; give it a value"


def _unknown(name: str, properties: Mapping[str, Any]) -> str:
    suggestion = nearest(name, properties)
    known = f"did you mean {suggestion}?" if suggestion else f"known here: {', '.join(sorted(properties))}"
    return f"unknown field; {known}"


def _type_problem(value: Any, schema: Schema) -> str | None:  # noqa: ANN401 (any YAML value)
    if schema.get("x-kubernetes-int-or-string"):
        is_fine = isinstance(value, (int, str)) and not isinstance(value, bool)
        return None if is_fine else "must be a whole number or text"
    wanted = schema.get("type")
    if wanted is None:
        return None
    is_fine = isinstance(value, TYPES[wanted]) and (wanted == "boolean" or not isinstance(value, bool))
    return None if is_fine else EXPECTED[wanted]


def _value_problems(value: Any, schema: Schema) -> Iterator[str]:  # noqa: ANN401 (any YAML value)
    for keyword, rule in RULES.items():
        if keyword in schema:
            problem = rule(value, schema[keyword])
            if problem:
                yield f"must be {schema['x-words']}" if keyword == "pattern" and "x-words" in schema else problem


def _enum(value: Any, allowed: list[Any]) -> str | None:  # noqa: ANN401
    if value in allowed:
        return None
    close = difflib.get_close_matches(str(value), [str(each) for each in allowed], n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"must be one of {', '.join(map(str, allowed))}{hint}"


def _minimum(value: Any, bound: float) -> str | None:  # noqa: ANN401
    return None if value >= bound else f"must be at least {bound}"


def _maximum(value: Any, bound: float) -> str | None:  # noqa: ANN401
    return None if value <= bound else f"must be at most {bound}"


def _pattern(value: Any, pattern: str) -> str | None:  # noqa: ANN401
    return None if re.search(pattern, str(value)) else f"must match {pattern}"


def _max_length(value: Any, bound: int) -> str | None:  # noqa: ANN401
    return None if len(value) <= bound else f"must not be longer than {bound} characters"


def _min_length(value: Any, bound: int) -> str | None:  # noqa: ANN401
    return None if len(value) >= bound else f"must have at least {bound} characters"


def _max_count(value: Any, bound: int) -> str | None:  # noqa: ANN401
    return None if len(value) <= bound else f"must not have more than {bound} entries"


def _min_count(value: Any, bound: int) -> str | None:  # noqa: ANN401
    return None if len(value) >= bound else f"must have at least {bound} entries"


RULES: dict[str, Callable[[Any, Any], str | None]] = {
    "enum": _enum,
    "minimum": _minimum,
    "maximum": _maximum,
    "pattern": _pattern,
    "minLength": _min_length,
    "maxLength": _max_length,
    "minItems": _min_count,
    "maxItems": _max_count,
    "maxProperties": _max_count,
}
