"""What the trackers of experiments (Weights & Biases, SwanLab) get alike: client, id of the run, facts and numbers."""

from __future__ import annotations

import contextlib
import importlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from megatron_trainer.failure import InvalidInput
from megatron_trainer.report.jsonl import Row
from megatron_trainer.report.records import RunInfo
from megatron_trainjob.violation import Violation


def imported(package: str, argument: str, value: object) -> ModuleType:
    """The client's package. Raises InvalidInput where this image does not have it."""
    try:
        return importlib.import_module(package)
    except ImportError as err:
        message = f"needs the Python package {package}, which this image does not have; install it or leave this empty"
        raise refused(argument, value, message) from err


def refused(argument: str, value: object, message: str) -> InvalidInput:
    """The error about the argument that asks for the tracker."""
    return InvalidInput((Violation(path=f"spec.args.{argument}", value=value, message=message),))


def without_key(argument: str, value: object, prefix: str, said: Exception) -> InvalidInput:
    """The error about a client that has no key for its server."""
    reason = str(said).strip().splitlines()[0] if str(said).strip() else type(said).__name__
    message = f"cannot start: {reason}; set {prefix}_API_KEY from a Secret (spec.env), or {prefix}_MODE to offline"
    return refused(argument, value, message)


@contextlib.contextmanager
def as_os_error(tracker: str) -> Iterator[None]:
    """Context that turns any error of a client into an OSError, which the reporter logs: it must not end the training.

    Its own process or its server may be gone; the clients have many exceptions for that, and change them.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as err:
        raise OSError(f"{tracker}: {type(err).__name__}: {err}") from err


def run_id(folder: Path) -> str:
    """The id of this folder's run, created on the first start."""
    path = folder / "run-id"
    if not path.exists():
        path.write_text(uuid.uuid4().hex[:8])
    return path.read_text().strip()


def facts(event: RunInfo) -> dict[str, object]:
    """The run's configuration: what it trains, where, and with which arguments."""
    own = {"model": event.model, "task": event.task, "world_size": event.world_size}
    return {**own, **event.layout, **event.arguments_given}


def numbers(row: Row) -> dict[str, float]:
    """The values of a row of logging.jsonl that make curves."""
    return {name: value for name, value in row.items() if isinstance(value, int | float)}
