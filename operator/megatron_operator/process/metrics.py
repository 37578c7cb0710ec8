"""Prometheus metrics of the operator: what jobs do, how fast, and the health of the operator itself.

Counts what others report; decides nothing. One registry per process, passed as a value.
"""

from __future__ import annotations

import itertools
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from megatron_operator.api import names
from megatron_operator.cluster.kubernetes.client import Request
from megatron_operator.timestamp import to_seconds

Object = Mapping[str, Any]
FAST_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SLOW_S = (0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200)
RESTART_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
RESTART_REASONS = (names.POD_FAILED, names.PREEMPTED, names.NODE_LOST, names.HUNG, names.NOT_STARTED_IN_PLACE)
RESTART_PHASES = ("detected", "decided", "ranksStarted", "processGroup", "loaded", "firstStep")
"""Times of status.lastRestart, in order; each phase but the first lasts from the one before it."""


class Metrics:
    """Every metric, by the name it is reported under."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._namespaces: set[str] = set()
        self.created = self._counter("megatron_jobs_created", "Jobs seen for the first time.", "namespace")
        self.finished = self._counter("megatron_jobs_finished", "Jobs that ended.", "namespace", "result", "reason")
        self.restarts = self._counter("megatron_job_restarts", "Restarts of a job's whole gang.", "namespace", "reason")
        self.start_s = self._histogram(
            "megatron_job_start_seconds", "From a job's creation until all its pods run.", SLOW_S
        )
        self.restart_s = self._histogram(
            "megatron_job_restart_phase_seconds",
            "Phases of restarts that reached their first step, each named by its end; total has all.",
            RESTART_S,
            *("phase", "in_place"),
        )
        self.pods_created_s = self._histogram(
            "megatron_job_pods_created_seconds", "From a job's creation until its pods exist.", SLOW_S
        )
        self.reconcile_s = self._histogram(
            "megatron_operator_reconcile_seconds", "Duration of one reconcile.", FAST_S, "result"
        )
        self.reconcile_errors = self._counter(
            "megatron_operator_reconcile_errors", "Reconciles that have to be retried."
        )
        self.requests = self._counter(
            "megatron_operator_api_requests", "Requests to the API server.", "verb", "resource", "code"
        )
        self.request_s = self._histogram(
            "megatron_operator_api_request_seconds", "Duration of a request.", FAST_S, "verb", "resource"
        )
        self.watch_events = self._counter(
            "megatron_operator_watch_events", "Events received from watches.", "resource", "type"
        )
        self.watch_restarts = self._counter(
            "megatron_operator_watch_restarts", "Watches that broke and started over.", "resource"
        )
        self.unreadable = self._counter(
            "megatron_operator_unreadable_objects", "Objects ignored because they could not be parsed.", "resource"
        )
        self.loop_lag_s = self._gauge("megatron_operator_event_loop_lag_seconds", "Lag of the event loop.")
        self.leader = self._gauge("megatron_operator_leader", "1 when this replica is the leader.")

    def _counter(self, name: str, help_: str, *labels: str) -> Counter:
        return Counter(name, help_, labels, registry=self.registry)

    def _gauge(self, name: str, help_: str, *labels: str) -> Gauge:
        return Gauge(name, help_, labels, registry=self.registry)

    def _histogram(self, name: str, help_: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, help_, labels, buckets=buckets, registry=self.registry)

    def on_request(self, request: Request) -> None:
        """Counts one request to the API server."""
        self.requests.labels(request.verb, request.resource, str(request.code)).inc()
        self.request_s.labels(request.verb, request.resource).observe(request.seconds)

    def on_watch_event(self, resource: str, type_: str) -> None:
        """Counts one event of a watch."""
        self.watch_events.labels(resource, type_).inc()

    def on_watch_restart(self, resource: str) -> None:
        """Counts a watch that broke."""
        self.watch_restarts.labels(resource).inc()

    def on_unreadable(self, resource: str) -> None:
        """Counts an ignored object."""
        self.unreadable.labels(resource).inc()

    def on_status(self, namespace: str, created_at: float, old: Object, new: Object, now: float) -> None:
        """Counts the job's lifecycle transitions in a status write. Times are seconds since the epoch."""
        self._start_counting(namespace)
        if not old:
            self.created.labels(namespace).inc()
        if _restarts(new) > _restarts(old):
            self.restarts.labels(namespace, _restart_reason(new)).inc()
        if _is_true(new, names.RUNNING) and not _is_true(old, names.RUNNING) and not _restarts(new):
            self.start_s.observe(max(0.0, now - created_at))
        self._on_last_restart(old.get("lastRestart") or {}, new.get("lastRestart") or {})
        for result in (names.SUCCEEDED, names.FAILED):
            if _is_true(new, result) and not _is_true(old, result):
                self.finished.labels(namespace, result, _reason(new, result)).inc()

    def _start_counting(self, namespace: str) -> None:
        """Shows restarts from 0 on: of a series that begins with 1, increase() does not see the first one."""
        for reason in RESTART_REASONS if namespace not in self._namespaces else ():
            self.restarts.labels(namespace, reason)
        self._namespaces.add(namespace)

    def _on_last_restart(self, old: Object, new: Object) -> None:
        """Observes the phases once all of them are known."""
        is_known = "firstStepTime" in old and old.get("attempt") == new.get("attempt")
        if "firstStepTime" not in new or is_known:
            return
        in_place = str(bool(new.get("inPlace"))).lower()
        reached = [(phase, to_seconds(new.get(f"{phase}Time"))) for phase in RESTART_PHASES]
        times = [(phase, at) for phase, at in reached if at is not None]
        for (_, since), (phase, at) in itertools.pairwise(times):
            self.restart_s.labels(phase, in_place).observe(max(0.0, at - since))
        self.restart_s.labels("total", in_place).observe(max(0.0, times[-1][1] - times[0][1]))

    def report_at_scrape(self, source: Callable[[], Iterator[GaugeMetricFamily]]) -> None:
        """Adds gauges that are computed at scrape time."""
        self.registry.register(_AtScrape(source))

    def text(self) -> bytes:
        """All metrics in the Prometheus text format."""
        return generate_latest(self.registry)


class _AtScrape(Collector):
    """Gauges from a function."""

    def __init__(self, source: Callable[[], Iterator[GaugeMetricFamily]]) -> None:
        self._source = source

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges as they are now."""
        return self._source()

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Empty: the source is not ready when it is registered."""
        return ()


def job_gauges(statuses: Iterable[tuple[str, Object]]) -> GaugeMetricFamily:
    """Number of jobs by phase. statuses: (namespace, status) of every job."""
    tally = Tally((namespace, status.get("phase", "Pending")) for namespace, status in statuses)
    family = GaugeMetricFamily("megatron_jobs", "Jobs by phase.", labels=("namespace", "phase"))
    for labels, count in tally.items():
        family.add_metric(labels, count)
    return family


def slow_rank_gauge(statuses: Iterable[tuple[str, Object]]) -> GaugeMetricFamily:
    """Number of jobs with a slow rank. statuses: (namespace, status) of every job."""
    tally = Tally(namespace for namespace, status in statuses if _is_true(status, names.SLOW_RANK))
    family = GaugeMetricFamily("megatron_jobs_with_slow_rank", "Jobs that wait for a slow rank.", labels=("namespace",))
    for namespace, count in tally.items():
        family.add_metric((namespace,), count)
    return family


def job_gauge(name: str, help_: str, values: Mapping[tuple[str, str], float]) -> GaugeMetricFamily:
    """One gauge with a series for each job, by (namespace, name)."""
    family = GaugeMetricFamily(name, help_, labels=("namespace", "name"))
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def simple_gauge(name: str, help_: str, value: float) -> GaugeMetricFamily:
    """One gauge without labels."""
    return GaugeMetricFamily(name, help_, value=value)


def _condition(status: Object, type_: str) -> Object:
    return next((c for c in status.get("conditions", ()) if c["type"] == type_), {})


def _is_true(status: Object, type_: str) -> bool:
    return _condition(status, type_).get("status") == "True"


def _reason(status: Object, type_: str) -> str:
    return str(_condition(status, type_).get("reason", ""))


def _restart_reason(status: Object) -> str:
    """Why the gang restarted. Of a restart in place condition Restarting is False, and says only that."""
    return str((status.get("lastRestart") or {}).get("reason") or _reason(status, names.RESTARTING))


def _restarts(status: Object) -> int:
    return int(status.get("restarts", {}).get("total", 0))
