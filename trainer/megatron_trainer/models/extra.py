"""extra_megatron_kwargs: further fields of megatron-core's model configuration, for what no argument stands for."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from megatron.core.transformer import TransformerConfig

from megatron_trainer.failure import InvalidInput
from megatron_trainjob.violation import Violation

_PLAIN = (bool, int, float, str)


def configuration(
    kind: type[TransformerConfig], fields: Mapping[str, Any], extra: Mapping[str, Any] | None
) -> TransformerConfig:
    """The configuration with the given fields and the user's own.

    Raises:
        InvalidInput: a field that does not exist, that arguments or the model decide, of another type, or that
        megatron-core refuses beside the others; all at once but the last.
    """
    extra = extra or {}
    violations = tuple(problem for name, value in extra.items() for problem in _problems(kind, fields, name, value))
    if violations:
        raise InvalidInput(violations)
    if not extra:
        return kind(**fields)
    try:
        return kind(**fields, **extra)
    except (ValueError, AssertionError, TypeError) as err:
        message = f"Megatron-Core refuses these settings: {err}"
        raise InvalidInput(
            (Violation(path="spec.args.extra_megatron_kwargs", value=dict(extra), message=message),)
        ) from err


def _problems(
    kind: type[TransformerConfig], fields: Mapping[str, Any], name: str, value: object
) -> Iterator[Violation]:
    known = {field.name: field.default for field in dataclasses.fields(kind) if field.init}
    path = f"spec.args.extra_megatron_kwargs.{name}"
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        yield Violation(path=path, value=value, message=f"is no field of Megatron-Core's {kind.__name__}{hint}")
    elif name in fields:
        message = "is decided by the model and the other arguments; set the argument that stands for it"
        yield Violation(path=path, value=value, message=message)
    elif wanted := _wrong_type(known[name], value):
        yield Violation(path=path, value=value, message=f"must be {wanted}, like its default {known[name]!r}")


def _wrong_type(default: object, value: object) -> str:
    """What the value must be, "" when it is that; a default that is no plain value allows anything."""
    kind = next((kind for kind in _PLAIN if type(default) is kind), None)
    if kind is None or value is None or type(value) is kind or (kind is float and type(value) is int):
        return ""
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[kind]
