"""The operator's own settings, read from its environment here and nowhere else."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast, get_args

from megatron_operator.job import KueueMode
from megatron_trainjob import images
from megatron_trainjob.violation import Violation

Value = TypeVar("Value")
GANG_SCHEDULERS = ("Volcano", "Coscheduling", "Native")
TRUTHS = {"true": True, "1": True, "false": False, "0": False}


class InvalidSettings(Exception):
    """The environment holds values that the operator cannot use; says all of them."""

    def __init__(self, violations: list[Violation]) -> None:
        super().__init__("\n".join(str(violation) for violation in violations))
        self.violations = violations


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One operator process. Names of variables are those of the fields, MTJ_ in front, in capitals.

    watch_namespaces: only these; empty means all. leader_election off means that this is the only replica.
    trainer_image: for jobs that name no image. gang_schedulers: whose PodGroup kinds the operator may use.
    kueue_mode: how a job with a Kueue queue enters it: its pods as a group, or the job by a Workload.
    webhook_certificates: folder with tls.crt and tls.key; None turns the admission webhook off.
    progress_port: where pods push their progress, None for nowhere; they reach it as
    https://progress_host:progress_service_port with the certificate of progress_certificates (a folder with tls.crt,
    tls.key and ca.crt). pod_ip: how another replica reaches this one. http_address: "" is every address, IPv4 and IPv6.
    """

    watch_namespaces: tuple[str, ...] = ()
    num_workers: int = 16
    max_parallel_creates: int = 32
    http_port: int = 8080
    http_address: str = ""
    log_level: str = "INFO"
    resync_s: float = 600.0
    compare_s: float = 60.0
    watch_silence_s: float = 90.0
    request_timeout_s: float = 10.0
    leader_election: bool = True
    lease_name: str = "megatron-train-operator"
    lease_duration_s: float = 15.0
    pod_name: str = field(default_factory=socket.gethostname)
    pod_namespace: str = "default"
    gang_schedulers: tuple[str, ...] = ()
    node_loss_detection: bool = True
    webhook_certificates: Path | None = None
    webhook_port: int = 9443
    progress_port: int | None = None
    progress_certificates: Path | None = None
    progress_host: str = ""
    progress_service_port: int = 10443
    pod_ip: str = "127.0.0.1"
    per_job_metrics: bool = False
    trainer_image: str = images.TRAINER
    kueue_mode: KueueMode = "PodGroup"
    kubeconfig: Path | None = None
    api_server: str | None = None
    kubernetes_service_host: str | None = None
    kubernetes_service_port: str = "443"


def read(variables: Mapping[str, str] | None = None) -> Settings:
    """The settings of this process (or of the given variables). Raises InvalidSettings with every problem."""
    reader = _Reader(os.environ if variables is None else variables)
    defaults = Settings(pod_name="")
    kubeconfig = reader.get("KUBECONFIG", Path, None)
    settings = Settings(
        watch_namespaces=reader.get("MTJ_WATCH_NAMESPACES", _words, ()),
        num_workers=reader.get("MTJ_NUM_WORKERS", _at_least_one, defaults.num_workers),
        max_parallel_creates=reader.get("MTJ_MAX_PARALLEL_CREATES", _at_least_one, defaults.max_parallel_creates),
        http_port=reader.get("MTJ_HTTP_PORT", int, defaults.http_port),
        http_address=reader.get("MTJ_HTTP_ADDRESS", str, defaults.http_address),
        log_level=reader.get("MTJ_LOG_LEVEL", str.upper, defaults.log_level),
        resync_s=reader.get("MTJ_RESYNC_S", float, defaults.resync_s),
        compare_s=reader.get("MTJ_COMPARE_S", float, defaults.compare_s),
        watch_silence_s=reader.get("MTJ_WATCH_SILENCE_S", float, defaults.watch_silence_s),
        request_timeout_s=reader.get("MTJ_REQUEST_TIMEOUT_S", float, defaults.request_timeout_s),
        leader_election=reader.get("MTJ_LEADER_ELECTION", _truth, defaults.leader_election),
        lease_name=reader.get("MTJ_LEASE_NAME", str, defaults.lease_name),
        lease_duration_s=reader.get("MTJ_LEASE_DURATION_S", float, defaults.lease_duration_s),
        pod_name=reader.get("MTJ_POD_NAME", str, socket.gethostname()),
        pod_namespace=reader.get("MTJ_POD_NAMESPACE", str, defaults.pod_namespace),
        gang_schedulers=reader.get("MTJ_GANG_SCHEDULERS", _gang_schedulers, ()),
        node_loss_detection=reader.get("MTJ_NODE_LOSS_DETECTION", _truth, defaults.node_loss_detection),
        webhook_certificates=reader.get("MTJ_WEBHOOK_CERTIFICATES", Path, None),
        webhook_port=reader.get("MTJ_WEBHOOK_PORT", int, defaults.webhook_port),
        progress_port=reader.get("MTJ_PROGRESS_PORT", int, None),
        progress_certificates=reader.get("MTJ_PROGRESS_CERTIFICATES", Path, None),
        progress_host=reader.get("MTJ_PROGRESS_HOST", str, defaults.progress_host),
        progress_service_port=reader.get("MTJ_PROGRESS_SERVICE_PORT", int, defaults.progress_service_port),
        pod_ip=reader.get("MTJ_POD_IP", str, defaults.pod_ip),
        per_job_metrics=reader.get("MTJ_PER_JOB_METRICS", _truth, defaults.per_job_metrics),
        trainer_image=reader.get("MTJ_TRAINER_IMAGE", str, defaults.trainer_image),
        kueue_mode=reader.get("MTJ_KUEUE_MODE", _kueue_mode, defaults.kueue_mode),
        kubeconfig=kubeconfig,
        api_server=reader.get("MTJ_API_SERVER", str, None),
        kubernetes_service_host=reader.get("KUBERNETES_SERVICE_HOST", str, None),
        kubernetes_service_port=reader.get("KUBERNETES_SERVICE_PORT", str, "443"),
    )
    if settings.kubeconfig is None and settings.kubernetes_service_host is None:
        problem = "set it to a kubeconfig file, or run the operator in a pod with a service account"
        reader.violations.append(Violation(path="KUBECONFIG", value=None, message=problem))
    if settings.progress_port and not (settings.progress_certificates and settings.progress_host):
        problem = "needs MTJ_PROGRESS_CERTIFICATES (a folder) and MTJ_PROGRESS_HOST (the name in the certificate)"
        reader.violations.append(Violation(path="MTJ_PROGRESS_PORT", value=settings.progress_port, message=problem))
    if reader.violations:
        raise InvalidSettings(reader.violations)
    return settings


def user_kubeconfig() -> Path:
    """The kubeconfig that kubectl reads first: $KUBECONFIG, else the one in the home folder."""
    first = os.environ.get("KUBECONFIG", "").split(os.pathsep)[0]
    return Path(first).expanduser() if first else Path.home() / ".kube" / "config"


class _Reader:
    """Reads variables and collects what is wrong with them."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables
        self.violations: list[Violation] = []

    def get(self, name: str, convert: Callable[[str], Value], default: Value) -> Value:
        """The converted variable, or the default when it is unset, empty or wrong (then a violation)."""
        text = self._variables.get(name, "")
        if not text:
            return default
        try:
            return convert(text)
        except ValueError as error:
            self.violations.append(Violation(path=name, value=text, message=str(error)))
            return default


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
