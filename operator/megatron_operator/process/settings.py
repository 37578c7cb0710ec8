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
CERTIFICATES = "/certificates"  # where the chart mounts them
TRUTHS = {"true": True, "1": True, "false": False, "0": False}


class InvalidSettings(Exception):
    """The environment has invalid values; the message lists all of them."""

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
        raise ValueError(f"does not support {', '.join(unknown)}; choose from {', '.join(GANG_SCHEDULERS)}")
    return _words(text)


def declared[Value](
    convert: Callable[[str], Value],
    default: Value,
    help: str,
    *,
    variable: str = "",
    chart: str = "",
    template: str = "",
    switch: str = "",
) -> Value:
    """A setting: its parser, default and help.

    variable: its environment variable where that is not MTJ_ and the field's name. chart: the chart value that sets it.
    template: what the chart makes it from where that is not the value alone. switch: the chart's value without which it
    stays unset.
    """
    declaration = {"variable": variable, "chart": chart, "template": template, "switch": switch}
    return field(default=default, metadata={"convert": convert, "help": help, **declaration})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One operator process."""

    watch_namespaces: tuple[str, ...] = declared(
        _words,
        (),
        "Namespaces to watch, separated by commas; empty means all.",
        chart="watchNamespaces",
        template='include "mtj.watchNamespaces" .',
    )
    num_workers: int = declared(_at_least_one, 16, "Jobs reconciled at the same time.", chart="workers")
    max_parallel_creates: int = declared(
        _at_least_one, 32, "Objects created at the same time.", chart="maxParallelCreates"
    )
    http_port: int = declared(int, 8080, "Port of metrics and health.", chart="metrics.port")
    http_address: str = declared(str, "", "Address that all servers listen on; empty is every one, IPv4 and IPv6.")
    log_level: str = declared(str.upper, "INFO", "DEBUG, INFO, WARNING or ERROR.", chart="logLevel")
    resync_s: float = declared(float, 600.0, "Seconds between two reconciles of an unchanged job.")
    compare_s: float = declared(float, 60.0, "Seconds between two comparisons of the cached jobs with the server's.")
    watch_silence_s: float = declared(float, 90.0, "Seconds of silence after which a watch is reopened.")
    request_timeout_s: float = declared(
        float, 10.0, "Seconds to wait for a response; at least 35 for writes, which may pass through webhooks."
    )
    leader_election: bool = declared(
        _truth, True, "Whether replicas elect a leader; false if this is the only one.", chart="leaderElection.enabled"
    )
    lease_name: str = declared(
        str, "megatron-train-operator", "Lease of the election.", template='include "mtj.fullname" .'
    )
    lease_duration_s: float = declared(
        float,
        15.0,
        "Seconds after which a leader that does not renew its lease is replaced.",
        chart="leaderElection.leaseDurationSeconds",
    )
    pod_name: str = field(
        default_factory=socket.gethostname,
        metadata={"convert": str, "help": "Identity of this replica, in a pod its name; the host's name if unset."},
    )
    pod_namespace: str = declared(str, "default", "Namespace of the lease and of this replica.")
    pod_ip: str = declared(str, "127.0.0.1", "Address at which another replica reaches this one.")
    gang_schedulers: tuple[str, ...] = declared(
        _gang_schedulers,
        (),
        "Gang schedulers whose PodGroups jobs may use, separated by commas.",
        chart="gang",
        template='include "mtj.gangSchedulers" .',
    )
    kueue_mode: KueueMode = declared(
        _kueue_mode,
        "PodGroup",
        "How a job is queued in Kueue: PodGroup (its pods as a group) or External (by a Workload).",
        chart="kueue.mode",
    )
    node_loss_detection: bool = declared(
        _truth,
        True,
        "Whether a job is restarted when one of its nodes is lost.",
        chart="nodeLossDetection",
        template='include "mtj.detectsNodeLoss" . | default "false"',
    )
    webhook_certificates: Path | None = declared(
        Path,
        None,
        "Directory with tls.crt and tls.key; the admission webhook is off if unset.",
        chart="webhook.enabled",
        template=f'"{CERTIFICATES}"',
        switch="webhook.enabled",
    )
    webhook_port: int = declared(
        int, 9443, "Port of the admission webhook.", chart="webhook.port", switch="webhook.enabled"
    )
    progress_port: int | None = declared(
        int,
        None,
        "Port to which pods push their progress; no pushing if unset.",
        chart="progressPush.port",
        switch="progressPush.enabled",
    )
    progress_service_port: int = declared(
        int,
        10443,
        "Port under which pods reach it, the one of the Service.",
        chart="progressPush.port",
        switch="progressPush.enabled",
    )
    progress_host: str = declared(
        str,
        "",
        "Host name under which pods reach it, as in the certificate.",
        template='printf "%s.%s.svc" (include "mtj.fullname" .) .Release.Namespace',
        switch="progressPush.enabled",
    )
    progress_certificates: Path | None = declared(
        Path,
        None,
        "Directory with tls.crt, tls.key and ca.crt for that port.",
        template=f'"{CERTIFICATES}"',
        switch="progressPush.enabled",
    )
    per_job_metrics: bool = declared(
        _truth, False, "Whether progress and heartbeat of each job are exported as metrics.", chart="perJobMetrics"
    )
    trainer_image: str = declared(
        str,
        images.TRAINER,
        "Trainer image of jobs that name no image.",
        chart="trainerImage",
        template='include "mtj.trainerImage" .',
    )
    kubeconfig: Path | None = declared(
        Path, None, "File with the API server's address and credentials, outside a pod.", variable="KUBECONFIG"
    )
    api_server: str | None = declared(str, None, "Address to use in place of the API server's own, such as a proxy's.")
    kubernetes_service_host: str | None = declared(
        str, None, "Host of the API server, set by the kubelet in every pod.", variable="KUBERNETES_SERVICE_HOST"
    )
    kubernetes_service_port: str = declared(
        str, "443", "Port of the API server, set by the kubelet in every pod.", variable="KUBERNETES_SERVICE_PORT"
    )


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
