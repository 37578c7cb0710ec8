"""Reports of launchers and the directives that answer them: their wire, what is told to whom, and how often."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_operator import clock
from megatron_operator.api import names
from megatron_operator.core import attempts
from megatron_operator.process.controller import Controller, Jobs
from megatron_operator.timestamp import to_text
from megatron_trainjob import launcher
from megatron_trainjob.launcher import Directive
from tests.support.operator.job_values import NOW, RUNNING_STATUS, condition
from tests.support.operator.launcher_values import KILLED, MASTER, PLACE, heard, restarted

TOLD = {
    "no news": (RUNNING_STATUS, heard(), Directive(attempt=0)),
    "no status yet": ({}, heard(), Directive(attempt=0)),
    "the next attempt": (restarted(), heard(), Directive(attempt=1)),
    "a back-off that is not over": (
        restarted(nextRetryTime=to_text(NOW + 3)),
        heard(),
        Directive(attempt=0, interval_s=3.0),
    ),
    "a long back-off": (
        restarted(nextRetryTime=to_text(NOW + 25)),
        heard(),
        Directive(attempt=0, interval_s=5.0),
    ),
    "a back-off that is over": (restarted(nextRetryTime=to_text(NOW - 5)), heard(), Directive(attempt=1)),
    "a pod of an earlier gang": (restarted(podAttempt=1), heard(), Directive(attempt=0, ends=True)),
    "a job that failed": (
        {**RUNNING_STATUS, "conditions": [condition(names.FAILED)]},
        heard(),
        Directive(attempt=0, ends=True),
    ),
    "an attempt that no one decided": (RUNNING_STATUS, heard(attempt=1), None),
}


@pytest.mark.parametrize(("status", "report", "directive"), TOLD.values(), ids=TOLD)
def test_directives_that_a_launcher_receives(status, report, directive):
    assert attempts.directive(status, PLACE, report.report, NOW, 1.0) == directive


def test_reports_and_directives_survive_the_wire():
    placed = replace(KILLED, host="machine-1", stack="step (train/loop.py:7)", gpu_error="GPU 0: Xid 48")
    for report in (heard().report, heard("failed", placed, stages={"loaded": 1.5}, container=None, memory=50).report):
        assert launcher.read_report(report.to_fields()) == report
    directive = Directive(attempt=3, ends=True, interval_s=2.0)
    assert launcher.read_directive(directive.to_fields()) == directive


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {},
        {"attempt": -1, "state": "running"},
        {"attempt": True, "state": "running"},
        {"attempt": 0, "state": "flying"},
        {"attempt": 0, "state": "failed"},
        {"attempt": 0, "state": "running", "failure": KILLED.to_fields()},
        {"attempt": 0, "state": "failed", "failure": {"exitCode": 1e9, "rank": 0}},
        {"attempt": 0, "state": "failed", "failure": {"exitCode": 1, "rank": "x"}},
        {"attempt": 0, "state": "running", "ageSeconds": float("nan")},
        {"attempt": 0, "state": "running", "stageSeconds": {"loaded": "soon"}},
    ],
)
def test_a_report_that_is_none_is_refused(body):
    with pytest.raises(ValueError, match="must be|is given"):
        launcher.read_report(body)


@pytest.mark.parametrize(
    ("state", "of_job", "in_all", "interval_s"),
    [
        ("running", 2, 2, 1.0),
        ("running", 1, 1, 10.0),
        ("running", 8, 500, 10.0),
        ("running", 8, 10_000, 60.0),
        ("failed", 2, 8, 0.2),
        ("failed", 1, 200, 4.0),
        ("failed", 2, 10_000, 10.0),
        ("failed", 500, 500, 10.0),
    ],
)
def test_reports_are_few_however_many_launchers_there_are(state, of_job, in_all, interval_s):
    report = heard(state, KILLED if state == "failed" else None).report
    assert attempts.interval_s(report, of_job, in_all) == interval_s


@pytest.mark.parametrize(
    ("others", "age_s", "state", "interval_s"),
    [
        (heard(), 1.0, "running", 20.0),
        (heard(), 1000.0, "running", 10.0),  # of pods that have ended, whose jobs are kept
        (heard(), 1.0, "failed", 0.2),
        (heard("failed", KILLED), 1.0, "failed", 10.0),  # as when storage that all use is gone
    ],
)
def test_launchers_report_as_often_as_there_are_others_alike(monkeypatch, others, age_s, state, interval_s):
    jobs, key = Jobs(), ("research", "tune")
    for name in ("tune", *(f"other-{number}" for number in range(999))):
        metadata = {"namespace": "research", "name": name, "uid": "u", "resourceVersion": "1"}
        jobs.put({"metadata": metadata, "status": RUNNING_STATUS})
    controller = Controller(client=None, recorder=None, cache=None, jobs=jobs, metrics=None)
    monkeypatch.setattr(clock, "now", lambda: NOW - age_s)
    for number in range(999):
        controller.take_report(("research", f"other-{number}"), "u", MASTER, others.report)
    monkeypatch.setattr(clock, "now", lambda: NOW)
    report = heard(state, KILLED if state == "failed" else None).report
    controller.take_report(key, "u", MASTER, report)
    assert controller.directive(key, "u", PLACE, report).interval_s == interval_s
