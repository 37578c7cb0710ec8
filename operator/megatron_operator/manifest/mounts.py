"""Rules for mount paths: no volume hides what the container itself, the operator or another volume has there."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

from megatron_operator.core.desired.command import ARGS_DIRECTORY
from megatron_operator.core.desired.volumes import CHECKPOINT_VOLUME, LAUNCHER_PATH, MEMORY_PATH, TOKEN_DIRECTORY
from megatron_trainjob.violation import Violation

Object = Mapping[str, Any]
# Programs, libraries, devices and settings of the image and the system: nothing starts where one of them is hidden.
SYSTEM = ("/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/sbin", "/sys", "/usr")
PROGRAMS = ("/usr/bin", "/usr/lib", "/usr/lib64", "/usr/local", "/usr/local/bin", "/usr/local/lib", "/usr/sbin")
# The container runtime lets nothing be mounted below these.
KERNEL = ("/proc",)
READ_ONLY = frozenset({"configMap", "downwardAPI", "image", "projected", "secret"})
"""Kinds of volumes that are read-only, whatever their mount says."""
PRIVATE = frozenset({"emptyDir", "ephemeral"})
"""Kinds of volumes that are created with each pod."""
CHECKPOINT = "spec.checkpoint.mountPath"


@dataclass(frozen=True, kw_only=True)
class Mount:
    """One mount of the trainer: the field that asks for it, what is given there, and its volume.

    is_read_only: nothing can be mounted below it, because no folder for that can be made.
    """

    field: str
    given: str
    volume: str
    is_read_only: bool = False

    @property
    def path(self) -> str:
        """The path without repeated or trailing slashes and dots."""
        return posixpath.normpath("/" + self.given.lstrip("/"))


def is_below(path: str, directory: str) -> bool:
    """Whether the path is the directory or inside it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def is_of_one_pod(path: str, spec: Object, volumes: Iterable[Object]) -> bool:
    """Whether each pod has a volume of its own at this path, so that no other pod sees what it writes there."""
    private = {str(each.get("name")) for each in volumes if PRIVATE & each.keys()}
    claim = spec["checkpoint"].get("pvc") or {}
    private |= set() if {"claimName", "template"} & claim.keys() else {CHECKPOINT_VOLUME}
    around = [mount for mount in _of_spec(spec, frozenset()) if is_below(path, mount.path)]
    return bool(around) and max(around, key=lambda mount: len(mount.path)).volume in private


def check(spec: Object, of_templates: Iterator[tuple[str, Object]], volumes: Iterable[Object]) -> Iterator[Violation]:
    """Every mount that is in the way.

    of_templates: (path, container) of the trainer in the pod templates. A mount there replaces that of the spec at the
    same path, and each role may have its own. volumes: of the spec and of the templates.
    """
    read_only = frozenset(str(each.get("name")) for each in volumes if READ_ONLY & each.keys())
    everywhere: dict[str, Mount] = {}
    for mount in _of_spec(spec, read_only):
        yield from _violation(mount, _problem(mount, spec) or _twice(mount, everywhere))
        everywhere.setdefault(mount.path, mount)
    for path, container in of_templates:
        here: dict[str, Mount] = {}
        for mount in _of_container(path, container, read_only):
            replaced = everywhere.get(mount.path)
            problem = _problem(mount, spec) or _twice(mount, here)
            yield from _violation(mount, problem or (_beside(mount, replaced) if replaced else ""))
            here.setdefault(mount.path, mount)


def _violation(mount: Mount, problem: str) -> Iterator[Violation]:
    if problem:
        yield Violation(path=mount.field, value=mount.given, message=f"{problem}; choose another path")


def _of_spec(spec: Object, read_only: Set[str]) -> Iterator[Mount]:
    yield Mount(field=CHECKPOINT, given=spec["checkpoint"]["mountPath"], volume=CHECKPOINT_VOLUME)
    yield from _of_container("spec", spec, read_only)


def _of_container(path: str, container: Object, read_only: Set[str]) -> Iterator[Mount]:
    for i, mount in enumerate(container.get("volumeMounts") or ()):
        if isinstance(mount, Mapping) and isinstance(mount.get("mountPath"), str):
            name = str(mount.get("name"))
            yield Mount(
                field=f"{path}.volumeMounts[{i}].mountPath",
                given=mount["mountPath"],
                volume=name,
                is_read_only=name in read_only or bool(mount.get("readOnly")),
            )


def _problem(mount: Mount, spec: Object) -> str:
    """What the mount hides of the container or of the operator's mounts."""
    of_memory = [MEMORY_PATH] if spec["checkpoint"].get("memory") else []
    ours = [ARGS_DIRECTORY, TOKEN_DIRECTORY, *of_memory, LAUNCHER_PATH]
    if mount.path == "/" or mount.path in (*SYSTEM, *PROGRAMS) or any(is_below(mount.path, each) for each in KERNEL):
        return "hides folders of the container itself"
    if mount.field == CHECKPOINT and any(is_below(mount.path, each) for each in SYSTEM):
        return "is a folder of the container's system"
    if mount.path == MEMORY_PATH and mount.field == CHECKPOINT and MEMORY_PATH in ours:
        return "is where checkpoints in memory are mounted"
    if mount.path in ours:
        return "is mounted already by the operator"
    below = next((each for each in ours if is_below(mount.path, each)), None)
    above = next((each for each in ours if mount.is_read_only and is_below(each, mount.path)), None)
    overlapped = below or above
    return f"overlaps {overlapped}, which the operator mounts" if overlapped else ""


def _twice(mount: Mount, taken: Mapping[str, Mount]) -> str:
    return "is mounted already" if mount.path in taken else ""


def _beside(mount: Mount, replaced: Mount) -> str:
    """What is wrong with a template's mount at a path of the spec: checkpoints stay on their own volume."""
    if mount.volume == replaced.volume:
        return ""
    is_replaced = mount.given == replaced.given and replaced.field != CHECKPOINT
    return "" if is_replaced else "is mounted already"
