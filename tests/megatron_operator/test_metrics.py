"""What the operator counts about restarts, from the statuses that it writes, and which replica reports jobs."""

import asyncio
from dataclasses import replace

import pytest

from megatron_operator.cluster.kubernetes.client import Client
from megatron_operator.cluster.kubernetes.connection import Identity, connect
from megatron_operator.core import reconcile
from megatron_operator.process import operate
from megatron_operator.process.metrics import Metrics
from megatron_operator.process.settings import Settings
from tests.support.operator.job_values import NOW, RUNNING_STATUS, beat, job, raw
from tests.support.operator.launcher_values import gang, heard

DECIDED = {
    "attempt": 3,
    "inPlace": True,
    "detectedTime": "2026-11-28T10:00:00.000Z",
    "decidedTime": "2026-11-28T10:00:00.500Z",
}
STARTED = {**DECIDED, "ranksStartedTime": "2026-11-28T10:00:01.000Z", "processGroupTime": "2026-11-28T10:00:03.000Z"}
DONE = {**STARTED, "loadedTime": "2026-11-28T10:00:06.000Z", "firstStepTime": "2026-11-28T10:00:07.000Z"}


def observed(*writes):
    """(count, sum) by phase after these values of lastRestart were written one after the other."""
    metrics, old = Metrics(), {"phase": "Running"}
    for record in writes:
        new = {**old, "lastRestart": record}
        metrics.on_status("team", 0.0, old, new, now=1.0)
        old = new
    read = metrics.registry.get_sample_value
    labels = (
        {"phase": phase, "in_place": "true"} for phase in ("decided", "ranksStarted", "loaded", "firstStep", "total")
    )
    name = "megatron_job_restart_phase_seconds"
    return {each["phase"]: (read(f"{name}_count", each), read(f"{name}_sum", each)) for each in labels}


def test_phases_of_a_restart_are_observed_once_and_when_all_are_known():
    assert set(observed(DECIDED, STARTED).values()) == {(None, None)}
    once = {"decided": (1, 0.5), "ranksStarted": (1, 0.5), "loaded": (1, 3), "firstStep": (1, 1), "total": (1, 7)}
    assert observed(DECIDED, STARTED, DONE) == observed(DECIDED, DONE, DONE) == once
    assert observed(DONE, {**DECIDED, "attempt": 4}, {**DONE, "attempt": 4})["total"] == (2, 14)


def test_a_phase_that_no_launcher_reported_is_part_of_the_next():
    without = {name: value for name, value in DONE.items() if name != "ranksStartedTime"}
    found = observed(DECIDED, without)
    assert found["ranksStarted"] == (None, None)
    assert found["total"] == (1, 7)


def restarts(metrics, reason):
    return metrics.registry.get_sample_value("megatron_job_restarts_total", {"namespace": "team", "reason": reason})


@pytest.mark.parametrize(
    ("seen", "reason"),
    [(gang(heard(), heard(), progress=beat(age_s=1800)), "Hung"), (gang(), "PodFailed")],
    ids=["hung", "killed"],
)
@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "new pods"])
def test_a_restart_is_counted_by_its_cause_wherever_it_happens(seen, reason, in_place):
    metrics, seen = Metrics(), replace(seen, status=RUNNING_STATUS)
    written = reconcile.plan(job({"failurePolicy": {"inPlaceRestart": in_place}}), seen, NOW).status
    assert written["lastRestart"]["inPlace"] is in_place
    metrics.on_status("team", 0.0, RUNNING_STATUS, written, NOW)
    assert restarts(metrics, reason) == 1


def test_restarts_are_shown_before_the_first_one():
    """Prometheus' increase() does not see a series begin: an alert would miss the first restart of a namespace."""
    metrics = Metrics()
    metrics.on_status("team", 0.0, {}, RUNNING_STATUS, NOW)
    assert {restarts(metrics, reason) for reason in ("Hung", "PodFailed", "Preempted", "NodeLost")} == {0}


def test_only_the_leader_reports_jobs_and_its_queue():
    """Each replica knows every job: a sum over both would show twice as many, and a follower works off no queue."""

    async def gauges(*, leads):
        connection = connect("http://127.0.0.1:1", ca_file=None, identity=Identity())
        metrics = Metrics()
        operator = operate.assemble(Settings(), connection, Client(connection), metrics)
        operator.jobs.put({**raw(resourceVersion="1"), "status": RUNNING_STATUS})
        operator.queue.add(("team", "tune"))
        metrics.leader.set(leads)
        return {family.name: [sample.value for sample in family.samples] for family in operate._gauges(operator)}

    assert asyncio.run(gauges(leads=False)) == {}
    shown = asyncio.run(gauges(leads=True))
    assert (shown["megatron_jobs"], shown["megatron_operator_queue_depth"]) == ([1], [1])
