"""Rules for mount paths: no volume hides what the container itself, the operator or another volume has there."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from megatron_operator.core.desired.command import ARGS_DIRECTORY
from megatron_operator.core.desired.volumes import CHECKPOINT_VOLUME, MEMORY_PATH, TOKEN_DIRECTORY
from megatron_trainjob.violation import Violation

Object = Mapping[str, Any]
# Programs, libraries, devices and settings of the image and the system: nothing starts where one of them is hidden.
SYSTEM = ("/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/sbin", "/sys", "/usr")
PROGRAMS = ("/usr/bin", "/usr/lib", "/usr/lib64", "/usr/local", "/usr/local/bin", "/usr/local/lib", "/usr/sbin")
# The container runtime lets nothing be mounted below these.
KERNEL = ("/proc",)
CHECKPOINT = "spec.checkpoint.mountPath"


@dataclass(frozen=True, kw_only=True)
class Mount:
    """One mount of the trainer: the field that asks for it, what is given there, and its volume.

    overrides: it stands in a pod template, where it may change a mount of the same volume.
    """

    field: str
    given: str
    volume: str
    overrides: bool = False

    @property
    def path(self) -> str:
        """The path without repeated or trailing slashes and dots."""
        return posixpath.normpath("/" + self.given.lstrip("/"))


def is_below(path: str, directory: str) -> bool:
    """Whether the path is the directory or inside it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def check(spec: Object, of_templates: Iterator[tuple[str, Object]]) -> Iterator[Violation]:
    """Every mount that is in the way. of_templates: (path, container) of the trainer in the pod templates."""
    taken: dict[str, str] = {}
    for mount in (*_of_spec(spec), *_of_templates(of_templates)):
        problem = _problem(mount, spec, taken)
        if problem:
            yield Violation(path=mount.field, value=mount.given, message=f"{problem}; choose another path")
        taken.setdefault(mount.path, mount.volume)


def _of_spec(spec: Object) -> Iterator[Mount]:
    yield Mount(field=CHECKPOINT, given=spec["checkpoint"]["mountPath"], volume=CHECKPOINT_VOLUME)
    for i, mount in enumerate(spec.get("volumeMounts", ())):
        yield Mount(field=f"spec.volumeMounts[{i}].mountPath", given=mount["mountPath"], volume=mount["name"])


def _of_templates(of_templates: Iterator[tuple[str, Object]]) -> Iterator[Mount]:
    for path, container in of_templates:
        for i, mount in enumerate(container.get("volumeMounts") or ()):
            if isinstance(mount, Mapping) and isinstance(mount.get("mountPath"), str):
                field = f"{path}.volumeMounts[{i}].mountPath"
                yield Mount(field=field, given=mount["mountPath"], volume=str(mount.get("name")), overrides=True)


def _problem(mount: Mount, spec: Object, taken: Mapping[str, str]) -> str:
    ours = [ARGS_DIRECTORY, TOKEN_DIRECTORY, *([MEMORY_PATH] if spec["checkpoint"].get("memory") else [])]
    if mount.path == "/" or mount.path in (*SYSTEM, *PROGRAMS) or any(is_below(mount.path, each) for each in KERNEL):
        return "hides folders of the container itself"
    if mount.field == CHECKPOINT and any(is_below(mount.path, each) for each in SYSTEM):
        return "is a folder of the container's system"
    if mount.path == MEMORY_PATH and mount.field == CHECKPOINT and MEMORY_PATH in ours:
        return "is where checkpoints in memory are mounted"
    if mount.path in taken and not (mount.overrides and mount.volume == taken[mount.path]):
        return "is mounted already"
    overlapped = [each for each in ours if is_below(mount.path, each) or is_below(each, mount.path)]
    if mount.path in overlapped:
        return "is mounted already by the operator"
    return f"overlaps {overlapped[0]}, which the operator mounts" if overlapped else ""
