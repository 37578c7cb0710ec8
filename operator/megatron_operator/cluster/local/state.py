"""The state folder of a job on one machine: its manifest, status, events, logs, volumes and lock."""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron_operator.api import names
from megatron_operator.core import progress_record
from megatron_operator.core.plan import Event
from megatron_operator.timestamp import to_text
from megatron_trainjob import input_file
from megatron_trainjob.progress import FILE as PROGRESS_FILE
from megatron_trainjob.progress import Progress

Object = Mapping[str, Any]
_FAST_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml, ten times as fast, where PyYAML was built with it; both are safe."""


class Busy(Exception):
    """Another process runs the job."""


@dataclass(frozen=True, kw_only=True)
class State:
    """The folder of one job. Files are replaced atomically, so that a reader never sees half of one."""

    directory: Path

    @property
    def volumes(self) -> Path:
        """Folders of the claims, by name."""
        return self.directory / "volumes"

    @property
    def progress_file(self) -> Path:
        """The trainer's progress record."""
        return self.directory / PROGRESS_FILE

    def log(self, pod_name: str) -> Path:
        """Output of a pod."""
        return self.directory / "logs" / f"{pod_name}.log"

    def pod(self, pod_name: str) -> Path:
        """The folder of one pod: its process record, arguments, termination message, scratch volumes."""
        return self.directory / "pods" / pod_name

    def pod_names(self) -> list[str]:
        """Pods that have a folder here."""
        folder = self.directory / "pods"
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def read_status(self) -> Object:
        """The stored status, {} if there is none."""
        return _read(self.directory / "status.yaml")

    def write_status(self, status: Object) -> None:
        """Replaces the status."""
        _write(
            self.directory / "status.yaml", json.dumps(status, indent=1)
        )  # JSON is YAML too, and ten times as fast to read

    def read_manifest(self) -> Object:
        """The stored manifest, {} if there is none."""
        return _read(self.directory / "job.yaml")

    def read_progress(self) -> Progress | None:
        """The trainer's last progress record."""
        return progress_record.read_file(self.progress_file)

    def take(self, manifest: Object) -> Object:
        """Stores the manifest and returns it with uid and generation, which increases when the spec has changed."""
        before = self.read_manifest()
        known = before.get("metadata", {})
        changed = before.get("spec") != _plain(manifest["spec"])
        metadata = {
            **manifest["metadata"],
            "uid": known.get("uid") or str(uuid.uuid4()),
            "generation": known.get("generation", 0) + (1 if changed else 0),
        }
        taken = {**manifest, "metadata": metadata}
        _write(self.directory / "job.yaml", _yaml(taken))
        return taken

    def append_events(self, events: Iterable[Event], now: float) -> None:
        """Adds events to events.jsonl."""
        time = to_text(now)
        entries = ({"time": time, "type": each.type, "reason": each.reason, "message": each.message} for each in events)
        lines = [json.dumps(line) + "\n" for line in entries]
        if lines:
            with (self.directory / "events.jsonl").open("a") as file:
                file.writelines(lines)

    def read_events(self) -> list[Object]:
        """All events, oldest first."""
        file = self.directory / "events.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the job for this process; the system releases it however the process ends. Raises Busy."""
        _make_private(self.directory)
        with (self.directory / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise Busy(f"process {file.read().strip() or '?'} is already running this job") from error
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield


def reopened(status: Object) -> Object:
    """The status of an ended job that is run again: without the terminal conditions, with cause and progress kept."""
    restarts = status.get("restarts", {})
    forgotten = (names.SUCCEEDED, names.FAILED, names.STALLED)
    kept = [condition for condition in status.get("conditions", ()) if condition["type"] not in forgotten]
    facts = {key: value for key, value in status.items() if key not in ("completionTime", "startTime")}
    again = {"total": restarts.get("total", 0), "counted": 0, "attempt": restarts.get("attempt", 0) + 1}
    checkpoint = {key: restarts[key] for key in ("checkpointIteration", "memoryIteration") if key in restarts}
    return {**facts, "conditions": kept, "restarts": {**again, **checkpoint}, "phase": "Pending"}


def _read(path: Path) -> Object:
    try:
        text = input_file.read_text(path)
    except FileNotFoundError:
        return {}
    content = _parsed(text)
    return content if isinstance(content, Mapping) else {}


def _parsed(text: str) -> Any:  # noqa: ANN401 (any value)
    if text.startswith("{"):
        with suppress(ValueError):
            return input_file.parse_json(text)
    return yaml.load(text, Loader=_FAST_LOADER)


def _write(path: Path, text: str) -> None:
    _make_private(path.parent)
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text)
    aside.replace(path)


def _make_private(directory: Path) -> None:
    """Creates the folder for its owner alone: manifests and logs may hold secrets."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)


def _yaml(value: Object) -> str:
    return yaml.safe_dump(_plain(value), sort_keys=False, allow_unicode=True, width=100)


def _plain(value: Object) -> Any:  # noqa: ANN401 (any JSON value)
    return json.loads(json.dumps(value))
