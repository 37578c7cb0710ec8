"""Lets the commands status, logs and wait query a cluster: their arguments and queries.

The client is imported only when a cluster is requested: the other commands run where no HTTP client is installed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from megatron_operator.cli.output import Unreachable

Object = Mapping[str, Any]


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The arguments that select a cluster."""
    command.add_argument("--cluster", action="store_true", help="the job is on the cluster of the kubeconfig")
    command.add_argument("-n", "--namespace", help="its namespace there (implies --cluster)")
    command.add_argument("--kubeconfig", type=Path, help="implies --cluster; default: $KUBECONFIG or ~/.kube/config")


def is_meant(arguments: argparse.Namespace) -> bool:
    """Whether the command queries a cluster."""
    return bool(arguments.cluster or arguments.namespace or arguments.kubeconfig)


def all_jobs(arguments: argparse.Namespace) -> Sequence[tuple[str, Object]]:
    """(name, status) of every job of the namespace. Raises Unreachable."""
    jobs: Sequence[Object] = _ask(arguments, lambda jobs: jobs.all())
    return [(job["metadata"]["name"], job.get("status") or {}) for job in jobs]


def status(arguments: argparse.Namespace, name: str) -> Object:
    """The status of a job, {} before it has one. Raises Unreachable."""
    found: Object = _ask(arguments, lambda jobs: jobs.get(name))
    return found.get("status") or {}


def events(arguments: argparse.Namespace, name: str) -> list[Object]:
    """The events about a job, oldest first. Raises Unreachable."""
    found: list[Object] = _ask(arguments, lambda jobs: jobs.events(name))
    return found


def write_log(arguments: argparse.Namespace, part: str, write: Callable[[bytes], None]) -> bool:
    """Writes the log of the newest pod whose name contains this; False without one. Raises Unreachable."""
    found: bool = _ask(arguments, lambda jobs: jobs.write_log(arguments.job, part, write, follow=arguments.follow))
    return found


def _ask(arguments: argparse.Namespace, question: Callable[[Any], Any]) -> Any:  # noqa: ANN401 (the question's answer)
    try:
        remote = import_module("megatron_operator.cli.remote")
    except ModuleNotFoundError as problem:
        raise Unreachable(f"needs the operator's packages (pip install '.[operator]'): {problem}") from problem
    return remote.ask(arguments.kubeconfig, arguments.namespace, question)
