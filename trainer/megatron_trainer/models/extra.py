"""extra_megatron_kwargs: further fields of megatron-core's configurations that no argument covers."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from megatron.core.optimizer import OptimizerConfig
from megatron.core.transformer import MLATransformerConfig

from megatron_trainer.failure import InvalidInput
from megatron_trainjob.violation import Violation

KNOWN = frozenset(field.name for kind in (MLATransformerConfig, OptimizerConfig) for field in dataclasses.fields(kind))
_CUDA_GRAPHS = ("cuda_graph_impl", "enable_cuda_graph", "external_cuda_graph")
_NO_CUDA_GRAPHS = (
    "a CUDA graph repeats kernels for one shape: padded rows differ in length, and of packed ones Megatron-Core's "
    "graphs take none (transformer_engine) or only those with as many samples and as long a longest one as at first "
    "(local); remove it: packed rows and larger micro-batches keep a GPU busy"
)
_WORDS = {bool: "true or false", int: "a number", float: "a number", str: "a text"}
"""Plain types; fields that take fractions may have integers as defaults, too."""


def configuration[Kind](kind: type[Kind], fields: Mapping[str, Any], extra: Mapping[str, Any] | None) -> Kind:
    """A configuration of the model or the optimizer, with the given fields and the user's fields that it has.

    Raises:
        InvalidInput: a field that neither has, that arguments or the model determine, of the wrong type, or that
        megatron-core rejects in combination with the others; all but the last at once.
    """
    own = {field.name: field.default for field in dataclasses.fields(kind) if field.init}  # type: ignore[arg-type]
    violations = tuple(_problems(own, fields, extra or {}))
    if violations:
        raise InvalidInput(violations)
    wanted = {name: value for name, value in (extra or {}).items() if name in own}
    if not wanted:
        return kind(**fields)
    try:
        return kind(**fields, **wanted)
    except (ValueError, AssertionError, TypeError) as err:
        message = f"Megatron-Core rejects these settings: {err}"
        raise InvalidInput((Violation(path="spec.args.extra_megatron_kwargs", value=wanted, message=message),)) from err


def _problems(own: Mapping[str, Any], fields: Mapping[str, Any], extra: Mapping[str, Any]) -> Iterator[Violation]:
    for name, value in extra.items():
        path = f"spec.args.extra_megatron_kwargs.{name}"
        if name not in KNOWN:
            near = difflib.get_close_matches(name, KNOWN, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            message = f"is not a field of Megatron-Core's TransformerConfig or OptimizerConfig{hint}"
            yield Violation(path=path, value=value, message=message)
        elif name in fields:
            message = "is decided by the model and the other arguments; set the argument that stands for it"
            yield Violation(path=path, value=value, message=message)
        elif name in _CUDA_GRAPHS and name in own and value != own[name]:
            yield Violation(path=path, value=value, message=_NO_CUDA_GRAPHS)
        elif name in own and (wanted := _wrong_type(own[name], value)):
            yield Violation(path=path, value=value, message=f"must be {wanted}, like its default {own[name]!r}")


def _wrong_type(default: object, value: object) -> str:
    """The type that the value must have, "" when it has it; a default that is not a plain value allows any type."""
    wanted = _WORDS.get(type(default))
    return "" if wanted is None or value is None or _WORDS.get(type(value)) == wanted else wanted
