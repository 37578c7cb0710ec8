"""Makes a value fit a structural schema, so that an API server accepts it: truncates text, drops what cannot fit.

Knows no field of the job. `structural.check` reports what is wrong in a user's manifest; this is for values that
programs report, where the rest remains useful.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_operator.guard import shortened
from megatron_operator.timestamp import to_seconds

Schema = Mapping[str, Any]
LARGEST_TEXT = 32768
BOUNDS = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1)}


class _Misfit(Exception):
    """A value of the wrong kind."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """The fitted value, and one line for each part that was truncated or dropped."""

    value: Any
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Fitter:
    problems: list[str] = field(default_factory=list)

    def fit(self, value: Any, schema: Schema, path: str) -> Any:  # noqa: ANN401 (any JSON value)
        kind = schema.get("type")
        if kind not in FITTERS:
            return value
        return FITTERS[kind](self, value, schema, path)

    def part(self, value: Any, schema: Schema, path: str) -> tuple[Any, ...]:  # noqa: ANN401
        """The fitted value alone in a tuple, an empty one when it cannot fit."""
        try:
            return (self.fit(value, schema, path),)
        except _Misfit as misfit:
            self.problems.append(f"{path}: {misfit}; dropped")
            return ()

    def text(self, value: Any, schema: Schema, path: str) -> str:  # noqa: ANN401
        if not isinstance(value, str):
            raise _Misfit(f"must be text, is {type(value).__name__}")
        if value not in schema.get("enum", (value,)):
            raise _Misfit("is not one of the known values")
        if schema.get("format") == "date-time":
            return _time(value)
        longest = schema.get("maxLength", LARGEST_TEXT)
        fitted = shortened(value, longest)
        if len(value) > longest:
            self.problems.append(f"{path}: longer than {longest} characters; truncated")
        return fitted

    def integer(self, value: Any, schema: Schema, path: str) -> int:  # noqa: ANN401
        if not isinstance(value, int) or isinstance(value, bool):
            raise _Misfit(f"must be a whole number, is {type(value).__name__}")
        lowest, largest = BOUNDS[schema.get("format", "int64")]
        lowest, largest = max(lowest, schema.get("minimum", lowest)), min(largest, schema.get("maximum", largest))
        if not lowest <= value <= largest:
            raise _Misfit(f"must be from {lowest} to {largest}")
        return value

    def number(self, value: Any, schema: Schema, path: str) -> float:  # noqa: ANN401
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise _Misfit(f"must be a number, is {type(value).__name__}")
        if not -1e308 < value < 1e308 or not math.isfinite(value):
            raise _Misfit("must be a finite number")
        if not schema.get("minimum", value) <= value <= schema.get("maximum", value):
            raise _Misfit(f"must be from {schema.get('minimum')} to {schema.get('maximum')}")
        return value

    def boolean(self, value: Any, schema: Schema, path: str) -> bool:  # noqa: ANN401
        if not isinstance(value, bool):
            raise _Misfit("must be true or false")
        return value

    def array(self, value: Any, schema: Schema, path: str) -> list[Any]:  # noqa: ANN401
        if not isinstance(value, (list, tuple)):
            raise _Misfit("must be a list")
        most = schema.get("maxItems", len(value))
        if len(value) > most:
            self.problems.append(f"{path}: more than {most} entries; truncated")
        parts = [self.part(item, schema["items"], f"{path}[{index}]") for index, item in enumerate(value[:most])]
        return [fitted for part in parts for fitted in part]

    def mapping(self, value: Any, schema: Schema, path: str) -> dict[str, Any]:  # noqa: ANN401
        if not isinstance(value, Mapping):
            raise _Misfit("must be an object")
        fitted: dict[str, Any] = {}
        for name, item in value.items():
            part = schema.get("properties", {}).get(name)
            if part is None:
                self.problems.append(f"{path}.{str(name)[:64]}: unknown; dropped")
            elif found := self.part(item, part, f"{path}.{name}"):
                fitted[name] = found[0]
        if missing := [name for name in schema.get("required", ()) if name not in fitted]:
            raise _Misfit(f"lacks {', '.join(missing)}")
        return fitted


FITTERS: dict[str, Callable[[_Fitter, Any, Schema, str], Any]] = {
    "string": _Fitter.text,
    "integer": _Fitter.integer,
    "number": _Fitter.number,
    "boolean": _Fitter.boolean,
    "array": _Fitter.array,
    "object": _Fitter.mapping,
}


def fitted(value: Any, schema: Schema, path: str) -> Fitted:  # noqa: ANN401 (any JSON value)
    """The value with every part that does not fit truncated or dropped; None if nothing of it fits."""
    fitter = _Fitter()
    found = fitter.part(value, schema, path)
    return Fitted(value=found[0] if found else None, problems=tuple(fitter.problems))


def _time(value: str) -> str:
    try:
        to_seconds(value)
    except (ValueError, OverflowError):
        raise _Misfit("must be a time") from None
    return value
