"""Ten thousand absurd pods and reports: each is read or left out, and every status, event and metric stays valid."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest

from megatron_operator.api.schema import structural
from megatron_operator.api.schema.status import status as status_schema
from megatron_operator.cluster.kubernetes.client import Client
from megatron_operator.cluster.kubernetes.connection import Identity, connect
from megatron_operator.cluster.kubernetes.informer import Informer, Listeners, Scope
from megatron_operator.cluster.kubernetes.pod_events import _read_page, newest_warning
from megatron_operator.cluster.kubernetes.resource import POD
from megatron_operator.core import progress_record, push, reconcile, status
from megatron_operator.core.decide.decision import Continue
from megatron_operator.core.observe import Seen, read_pod
from megatron_operator.guard import Guard
from megatron_operator.process.metrics import Metrics, job_gauge
from tests.support.operator import pod_fuzz
from tests.support.operator.job_values import NOW, job, pod

UNUSED = Client(connect("http://unused", ca_file=None, identity=Identity()))
SCHEMA = status_schema()
GANG = job({"failurePolicy": {"maxRestarts": 3, "hangTimeoutSeconds": 60}}, uid=pod_fuzz.UID, namespace="team")
KEY = ("team", pod_fuzz.JOB)


def assert_valid(computed):
    """The API server would take this status, and JSON can carry it."""
    assert not list(structural.check(computed, SCHEMA, "status"))
    json.dumps(computed, allow_nan=False).encode()
    json.dumps(computed, ensure_ascii=False).encode()


def assert_sound(plan):
    if plan.status is not None:
        assert_valid(plan.status)
    for event in plan.events:
        assert len(event.message) <= 1024
        assert event.reason.isalnum()
    assert plan.requeue_s is None or plan.requeue_s >= 0


def watched():
    """An informer of pods, and how many it could not read."""
    unreadable = []
    listeners = Listeners(changed=lambda key: None, guard=Guard(count=unreadable.append))
    return Informer(UNUSED, Scope(resource=POD), read_pod, listeners), unreadable


def fuzz_pods(seed, num_jobs):
    """How often each phase came out of jobs that see eight changes of pods each."""
    draw, outcomes = random.Random(seed), Counter()
    for _ in range(num_jobs):
        informer, unreadable = watched()
        stored = {}
        for version in range(1, 9):  # the watch goes on while the job is reconciled
            raw = pod_fuzz.any_pod(draw)
            raw["metadata"]["resourceVersion"] = str(version)
            (informer.drop if draw.random() < 0.05 else informer.put)(raw)
            pods = tuple(informer.of(KEY, pod_fuzz.UID).values())
            plan = reconcile.plan(GANG, Seen(status=stored, pods=pods), NOW)
            assert_sound(plan)
            stored = plan.status or stored
            outcomes[stored.get("phase", "none")] += 1
        outcomes["unreadable"] += len(unreadable)
    return outcomes


@pytest.mark.parametrize("seed", [90210, pytest.param(31337, marks=pytest.mark.slow)])
def test_no_pod_makes_the_operator_stumble_or_a_status_invalid(seed):
    outcomes = fuzz_pods(seed, num_jobs=150)
    assert {phase for phase, count in outcomes.items() if count > 5} >= {
        *("Restarting", "Succeeded", "Failed", "Starting", "unreadable"),
    }, outcomes


def test_a_pod_that_an_api_server_takes_is_read_whatever_it_says():
    draw = random.Random(4711)
    ours = 0
    for _ in range(1000):
        raw = pod_fuzz.typed_pod(draw)
        if raw["metadata"]["name"].startswith(f"{pod_fuzz.JOB}-a"):
            read_pod(raw)
            ours += 1
    assert ours > 150


def test_no_event_about_a_pod_makes_the_operator_stumble_or_a_status_invalid():
    draw = random.Random(31339)
    for _ in range(500):
        reason, message = newest_warning([pod_fuzz.any_event(draw) for _ in range(draw.randrange(4))])
        waits = pod(phase="Pending", warning=reason, warning_message=message, scheduled_at=NOW - draw.choice([1, 1e6]))
        assert_sound(reconcile.plan(GANG, Seen(pods=(waits,)), NOW))
    assert Guard().read("events", _read_page, {"items": [{"type": "Warning", "source": 3}]}) is None


def fuzz_reports(seed, num, folder):
    """How often reports were taken, cut and refused."""
    draw, outcomes, metrics = random.Random(seed), Counter(), Metrics()
    gauges = {}
    metrics.report_at_scrape(lambda: iter([job_gauge("progress", "Share.", gauges)]))
    for _ in range(num):
        body = pod_fuzz.any_report(draw)
        try:
            progress, problems = push.read(json.loads(json.dumps(body)), 0, NOW)
        except ValueError as error:
            outcomes["refused" if str(error) else "refused without a word"] += 1
            continue
        outcomes["cut" if problems else "taken"] += 1
        assert_valid(status.compute(GANG, Seen(progress=progress), Continue(), NOW))
        gauges[KEY] = progress.percentage / 100
        assert metrics.text()
        (folder / "progress.json").write_text(json.dumps(body))
        progress_record.read_file(folder / "progress.json")
    return outcomes


@pytest.mark.parametrize("seed", [90211, pytest.param(31338, marks=pytest.mark.slow)])
def test_no_report_makes_the_operator_stumble_or_a_status_invalid(seed, tmp_path):
    outcomes = fuzz_reports(seed, 500, tmp_path)
    assert not outcomes["refused without a word"]
    assert min(outcomes[kind] for kind in ("refused", "cut", "taken")) > 20


@pytest.mark.slow
def test_ten_thousand_pods_and_ten_thousand_reports(tmp_path):
    assert fuzz_pods(seed=4711, num_jobs=1250)["unreadable"]
    assert not fuzz_reports(4712, 10_000, tmp_path)["refused without a word"]
