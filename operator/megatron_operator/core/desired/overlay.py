"""Merges the user's pod template into the generated one, like kubectl's strategic merge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Lists whose items are identified by a key; any other list is replaced as a whole.
KEYS: dict[str, str] = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "schedulingGates": "name",
    "resourceClaims": "name",
}
# Lists to which the user's entries are added.
APPENDED = frozenset(
    {
        "tolerations",
        "envFrom",
        "requiredDuringSchedulingIgnoredDuringExecution",
        "preferredDuringSchedulingIgnoredDuringExecution",
    }
)


def merged(generated: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """The generated mapping with the overlay's values; neither is modified."""
    result = dict(generated)
    for key, value in overlay.items():
        result[key] = _merged_value(key, result.get(key), value)
    return result


def _merged_value(key: str, generated: Any, overlay: Any) -> Any:  # noqa: ANN401 (any Kubernetes value)
    if isinstance(generated, Mapping) and isinstance(overlay, Mapping):
        return merged(generated, overlay)
    if isinstance(generated, list) and isinstance(overlay, list):
        if key in APPENDED:
            return [*generated, *overlay]
        if key in KEYS:
            return _merged_list(KEYS[key], generated, overlay)
    return overlay


def _merged_list(key: str, generated: list[Any], overlay: list[Any]) -> list[Any]:
    """Items with the same key are merged in their place, new ones follow in the overlay's order."""
    changes = {item[key]: item for item in overlay}
    known = {item[key] for item in generated}
    kept = [merged(item, changes[item[key]]) if item[key] in changes else item for item in generated]
    return [*kept, *(item for item in overlay if item[key] not in known)]
