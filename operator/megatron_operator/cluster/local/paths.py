"""Paths of a pod on one machine: each mount maps to a folder, and paths below the mount are rewritten. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from megatron_operator.core.desired.volumes import CHECKPOINT_VOLUME, MEMORY_VOLUME

Object = Mapping[str, Any]
# A path starts the text or follows one of these, as in PATH-like lists and --option=/path.
BEFORE_PATH = r"(?<![^\s=:,;\"'(\[])"


class NoSuchVolume(Exception):
    """A volume has no counterpart on this machine and no folder was given for it."""


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Locations of volumes: `bound` by the user (claim or volume name -> folder), else below `volumes` or `scratch`.

    scratch: folder of the pod's own, for emptyDir. memory: of its node, for checkpoints in memory.
    """

    volumes: Path
    scratch: Path
    bound: Mapping[str, Path] = field(default_factory=dict)
    memory: Path | None = None


def folder_of(volume: Object, folders: Folders) -> Path | None:
    """The folder behind a volume; None for shared memory and arguments, which have none. Raises NoSuchVolume."""
    name = str(volume["name"])
    claim = str((volume.get("persistentVolumeClaim") or {}).get("claimName", ""))
    for key in (claim, name):
        if key in folders.bound:
            return folders.bound[key]
    if claim:
        return folders.volumes / claim
    if "hostPath" in volume:
        return Path(volume["hostPath"]["path"])
    if "emptyDir" in volume:
        if name == MEMORY_VOLUME:
            return folders.memory
        if (volume["emptyDir"] or {}).get("medium") == "Memory":
            return None
        # On one machine a checkpoint outlives its pod even where the manifest gives it no volume.
        return folders.volumes / name if name == CHECKPOINT_VOLUME else folders.scratch / name
    kind = next((key for key in volume if key != "name"), "unknown")
    raise NoSuchVolume(f"volume {name} ({kind}) does not exist here; bind it to a folder with --volume {name}=FOLDER")


def config_map_of(volume: Object) -> str:
    """Name of the config map behind a volume, "" for other kinds."""
    return str((volume.get("configMap") or {}).get("name", ""))


def mapping(pod_spec: Object, container: Object, folders: Folders, *, config: Mapping[str, Path]) -> dict[str, str]:
    """mountPath -> folder for each mount of a container. `config`: the folders of config maps by name."""
    volumes = {volume["name"]: volume for volume in pod_spec.get("volumes", ())}
    paths: dict[str, str] = {}
    for mount in container.get("volumeMounts", ()):
        volume = volumes[mount["name"]]
        folder = config.get(config_map_of(volume)) or folder_of(volume, folders)
        if folder is not None:
            paths[mount["mountPath"].rstrip("/")] = str(_inside(folder, mount.get("subPath", "")))
    return paths


def _inside(folder: Path, sub_path: str) -> Path:
    """A folder below a volume's. Raises NoSuchVolume for one outside of it, which Kubernetes rejects too."""
    if Path(sub_path).is_absolute() or ".." in Path(sub_path).parts:
        raise NoSuchVolume(f"subPath {sub_path!r} leads out of its volume; use a folder below it, without '..'")
    return folder / sub_path


def rewritten(text: str, paths: Mapping[str, str]) -> str:
    """The text with every path below a mount replaced by the path in the folder behind it."""
    if not paths:
        return text
    mounts = "|".join(re.escape(mount) for mount in sorted(paths, key=len, reverse=True))
    return re.sub(rf"{BEFORE_PATH}({mounts})(?=/|[\s:;,\"')\]]|$)", lambda match: paths[match.group(1)], text)


def rewritten_value(value: Any, paths: Mapping[str, str]) -> Any:  # noqa: ANN401 (any YAML value)
    """The same for every text inside a YAML value."""
    if isinstance(value, str):
        return rewritten(value, paths)
    if isinstance(value, Mapping):
        return {key: rewritten_value(item, paths) for key, item in value.items()}
    if isinstance(value, list):
        return [rewritten_value(item, paths) for item in value]
    return value


def rewritten_yaml(text: str, paths: Mapping[str, str]) -> str:
    """The same for a YAML document."""
    document = rewritten_value(yaml.safe_load(text), paths)
    return yaml.safe_dump(document, sort_keys=True, allow_unicode=True, width=100)
