"""What differs between two manifests of a job, field by field, for a reader."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from megatron_trainjob import shown

Object = Mapping[str, Any]
_ABSENT = "not set"


def changes(before: Object, after: Object) -> list[str]:
    """One line a changed field of the spec, such as `spec.args.lr: 0.0001 -> 0.001`, in the order of their names."""
    old, new = (dict(_leaves("spec", manifest.get("spec", {}))) for manifest in (before, after))
    differing = sorted(path for path in {**old, **new} if old.get(path, _ABSENT) != new.get(path, _ABSENT))
    return [f"{path}: {_shown(path, old)} -> {_shown(path, new)}" for path in differing]


def _shown(path: str, values: Mapping[str, str]) -> str:
    if path not in values:
        return _ABSENT
    return shown.HIDDEN if shown.is_secret(path) else shown.without_secrets(values[path])


def _leaves(path: str, value: object) -> Iterator[tuple[str, str]]:
    """Every field below `path` with its value as JSON; a list is one value."""
    if isinstance(value, Mapping) and value:
        for name, part in value.items():
            yield from _leaves(f"{path}.{name}", part)
    else:
        yield path, json.dumps(value, ensure_ascii=False, default=str)
