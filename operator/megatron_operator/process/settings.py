"""The operator's own settings, each declared once, read from its environment here and nowhere else."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast, get_args

from megatron_operator.api.values import Gang
from megatron_operator.core.job import KueueMode
from megatron_trainjob import images
from megatron_trainjob.violation import Violation

GANG_SCHEDULERS = tuple(gang for gang in get_args(Gang) if gang != "None")
TRUTHS = {"true": True, "1": True, "false": False, "0": False}


class InvalidSettings(Exception):
    """The environment holds values that the operator cannot use; says all of them."""

    def __init__(self, violations: list[Violation]) -> None:
        super().__init__("\n".join(str(violation) for violation in violations))
        self.violations = violations


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _truth(text: str) -> bool:
    if text.lower() not in TRUTHS:
        raise ValueError("must be true or false")
    return TRUTHS[text.lower()]


def _at_least_one(text: str) -> int:
    if int(text) < 1:
        raise ValueError("must be at least 1")
    return int(text)


def _kueue_mode(text: str) -> KueueMode:
    if text not in get_args(KueueMode):
        raise ValueError(f"must be one of {', '.join(get_args(KueueMode))}")
    return cast(KueueMode, text)


def _gang_schedulers(text: str) -> tuple[str, ...]:
    unknown = [word for word in _words(text) if word not in GANG_SCHEDULERS]
    if unknown:
        raise ValueError(f"knows no {', '.join(unknown)}; choose among {', '.join(GANG_SCHEDULERS)}")
    return _words(text)


def declared[Value](convert: Callable[[str], Value], default: Value, variable: str = "") -> Value:
    """A setting: how its text is read, its default, and its variable where that is not MTJ_ and the field's name."""
    return field(default=default, metadata={"convert": convert, "variable": variable})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One operator process. Names of variables are those of the fields, MTJ_ in front, in capitals.

    watch_namespaces: only these; empty means all. leader_election off means that this is the only replica.
    trainer_image: for jobs that name no image. gang_schedulers: whose PodGroup kinds the operator may use.
    kueue_mode: how a job with a Kueue queue enters it: its pods as a group, or the job by a Workload.
    webhook_certificates: folder with tls.crt and tls.key; None turns the admission webhook off.
    progress_port: where pods push their progress, None for nowhere; they reach it as
    https://progress_host:progress_service_port with the certificate of progress_certificates (a folder with tls.crt,
    tls.key and ca.crt). request_timeout_s: how long an answer is waited for; that of a write, which may pass webhooks,
    at least 35 s. pod_ip: how another replica reaches this one. http_address: "" is every address, IPv4 and IPv6.
    """

    watch_namespaces: tuple[str, ...] = declared(_words, ())
    num_workers: int = declared(_at_least_one, 16)
    max_parallel_creates: int = declared(_at_least_one, 32)
    http_port: int = declared(int, 8080)
    http_address: str = declared(str, "")
    log_level: str = declared(str.upper, "INFO")
    resync_s: float = declared(float, 600.0)
    compare_s: float = declared(float, 60.0)
    watch_silence_s: float = declared(float, 90.0)
    request_timeout_s: float = declared(float, 10.0)
    leader_election: bool = declared(_truth, True)
    lease_name: str = declared(str, "megatron-train-operator")
    lease_duration_s: float = declared(float, 15.0)
    pod_name: str = field(default_factory=socket.gethostname, metadata={"convert": str})
    pod_namespace: str = declared(str, "default")
    gang_schedulers: tuple[str, ...] = declared(_gang_schedulers, ())
    node_loss_detection: bool = declared(_truth, True)
    webhook_certificates: Path | None = declared(Path, None)
    webhook_port: int = declared(int, 9443)
    progress_port: int | None = declared(int, None)
    progress_certificates: Path | None = declared(Path, None)
    progress_host: str = declared(str, "")
    progress_service_port: int = declared(int, 10443)
    pod_ip: str = declared(str, "127.0.0.1")
    per_job_metrics: bool = declared(_truth, False)
    trainer_image: str = declared(str, images.TRAINER)
    kueue_mode: KueueMode = declared(_kueue_mode, "PodGroup")
    kubeconfig: Path | None = declared(Path, None, "KUBECONFIG")
    api_server: str | None = declared(str, None)
    kubernetes_service_host: str | None = declared(str, None, "KUBERNETES_SERVICE_HOST")
    kubernetes_service_port: str = declared(str, "443", "KUBERNETES_SERVICE_PORT")


# The variable of each field.
VARIABLES: Mapping[str, str] = {
    each.name: each.metadata.get("variable") or f"MTJ_{each.name.upper()}" for each in fields(Settings)
}


def read(variables: Mapping[str, str] | None = None) -> Settings:
    """The settings of this process (or of the given variables). Raises InvalidSettings with every problem."""
    given = os.environ if variables is None else variables
    values: dict[str, Any] = {}
    violations: list[Violation] = []
    for each in fields(Settings):
        text = given.get(VARIABLES[each.name], "")
        if not text:
            continue  # unset and empty are the default
        try:
            values[each.name] = each.metadata["convert"](text)
        except ValueError as error:
            violations.append(Violation(path=VARIABLES[each.name], value=text, message=str(error)))
    settings = Settings(**values)
    if violations := [*violations, *_contradictions(settings)]:
        raise InvalidSettings(violations)
    return settings


def _contradictions(settings: Settings) -> Iterator[Violation]:
    if settings.kubeconfig is None and settings.kubernetes_service_host is None:
        problem = "set it to a kubeconfig file, or run the operator in a pod with a service account"
        yield Violation(path="KUBECONFIG", value=None, message=problem)
    if settings.progress_port and not (settings.progress_certificates and settings.progress_host):
        problem = "needs MTJ_PROGRESS_CERTIFICATES (a folder) and MTJ_PROGRESS_HOST (the name in the certificate)"
        yield Violation(path="MTJ_PROGRESS_PORT", value=settings.progress_port, message=problem)


def user_kubeconfig() -> Path:
    """The kubeconfig that kubectl reads first: $KUBECONFIG, else the one in the home folder."""
    first = os.environ.get("KUBECONFIG", "").split(os.pathsep)[0]
    return Path(first).expanduser() if first else Path.home() / ".kube" / "config"
