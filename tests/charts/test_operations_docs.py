"""What is shown and alerted on is what the operator measures, and the runbook answers all that it can say at night.

The reasons of conditions are those of `api/names.py`, the events those that the code names; none is listed here.
"""

from __future__ import annotations

import ast
import asyncio
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from prometheus_client.metrics_core import Metric

import megatron_operator
from local_cluster import helm_chart
from megatron_operator.api import names
from megatron_operator.cluster.kubernetes.client import Client
from megatron_operator.cluster.kubernetes.connection import Identity, connect
from megatron_operator.core import events
from megatron_operator.core.decide import failure, waiting
from megatron_operator.process import operate
from megatron_operator.process.metrics import Metrics
from megatron_operator.process.settings import Settings
from megatron_trainjob.exit_codes import ExitCode, retry_class
from tests.support.operator import dashboard

ROOT = Path(__file__).parent.parent.parent
MONITORING = helm_chart.CHART / "templates" / "monitoring.yaml"
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
SECTIONS = {part.splitlines()[0]: part for part in RUNBOOK.split("\n## ")}
# What `retry_class` says, in the words of the table of exit codes.
ANSWERS = {"done": "completes the job", "never": "fails the job", "retry": "restarts", "resume": "restarts"}


def served() -> dict[str, frozenset[str]]:
    """Metrics that the leader serves, each with its labels."""

    async def scraped() -> list[Metric]:
        connection = connect("http://127.0.0.1:1", ca_file=None, identity=Identity())
        operator = operate.assemble(Settings(per_job_metrics=True), connection, Client(connection), Metrics())
        operator.metrics.leader.set(1)
        operator.metrics.report_at_scrape(lambda: operate._gauges(operator))
        return list(operator.metrics.registry.collect())

    families = asyncio.run(scraped())
    held = {
        each._name: frozenset(each._labelnames) for each in vars(Metrics()).values() if hasattr(each, "_labelnames")
    }
    at_scrape = {each.name: frozenset(getattr(each, "_labelnames", ())) for each in families}
    return {**at_scrape, **held}


def named(text: str) -> dict[str, set[str]]:
    """Metrics that a text speaks of, without the endings of their series, with the labels in braces."""
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(r"\b(megatron_(?:jobs?|operator)_?\w*)(?:\{([\w,]*)\})?", text):
        metric = re.sub(r"_(total|bucket|sum|count)$", "", name)
        found.setdefault(metric, set()).update(filter(None, labels.split(",")))
    return found


def reasons() -> set[str]:
    """Reasons of conditions: the part of `names` that its comments head so, and those of pods that do not start."""
    source = Path(names.__file__).read_text()
    part = source[source.index("# Reasons of Admitted") : source.index("MAX_JOB_NAME_LENGTH")]
    listed = set(re.findall(r'^[A-Z_]+: Final = "(\w+)"', part, flags=re.MULTILINE))
    of_pods = waiting.CONTAINER_REASONS | waiting.VOLUME_REASONS
    return listed | of_pods | {names.SPEC_WARNINGS, names.FAR_ABOVE_MEDIAN, failure.POD_DELETED}


def emitted() -> set[str]:
    """Reasons of events: what is passed to Event, and in core/events.py to the two functions that make one there."""
    found = set(events.RENEWALS.values())
    for file in Path(megatron_operator.__file__).parent.rglob("*.py"):
        tree = ast.parse(file.read_text())
        chosen = {
            target.id: node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        makers = ("Event", "_normal", "_warning") if file.name == "events.py" else ("Event",)
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in makers:
                given = [each.value for each in call.keywords if each.arg == "reason"] or call.args[:1]
                found |= {text for each in given for text in _texts(each, chosen)}
    return found


def _texts(node: ast.expr, chosen: Mapping[str, ast.expr]) -> Iterator[str]:
    """The constants that an expression can be; none for a parameter, whose values are constants elsewhere."""
    if isinstance(node, ast.Constant):
        yield str(node.value)
    elif isinstance(node, ast.Attribute):
        yield str(getattr(names, node.attr))
    elif isinstance(node, ast.IfExp):
        yield from (text for each in (node.body, node.orelse) for text in _texts(each, chosen))
    elif isinstance(node, ast.Name) and node.id in chosen:
        yield from _texts(chosen[node.id], chosen)


def test_every_metric_of_dashboard_and_alerts_is_one_that_the_operator_serves():
    shown = " ".join(query.text for query in dashboard.queries())
    alerts = " ".join(re.findall(r"expr: (.*)", MONITORING.read_text()))
    assert set(named(shown)) | set(named(alerts)) <= set(served())


def test_the_runbook_lists_the_metrics_that_the_operator_serves_with_their_labels():
    listed = named(SECTIONS["Metrics"])
    assert {metric: frozenset(labels) for metric, labels in listed.items()} == served()
    assert set(named(RUNBOOK)) <= set(listed)


def test_the_runbook_answers_every_alert():
    alerts = re.findall(r"alert: (\w+)", MONITORING.read_text())
    assert len(alerts) >= 4
    assert [alert for alert in alerts if f"### {alert}\n" not in RUNBOOK] == []


def test_the_runbook_answers_every_reason_of_a_condition_and_every_phase():
    assert len(reasons()) > 40
    assert [reason for reason in sorted(reasons()) if f"`{reason}`" not in SECTIONS["Reasons"]] == []
    phases = {"Queued", "Starting", "Pending", names.RESTARTING, names.RUNNING, *("Suspended", "Succeeded", "Failed")}
    assert [phase for phase in sorted(phases) if phase not in SECTIONS["Phases"]] == []


def test_the_runbook_answers_every_event():
    found = emitted()
    assert {"JobRestarting", "SpareRefused", "NodeExcluded", "CleanedUp", "JobHung", "DeadlineExceeded"} <= found
    assert len(found) > 20
    assert [event for event in sorted(found) if f"`{event}`" not in SECTIONS["Reasons"]] == []


@pytest.mark.parametrize("code", ExitCode, ids=lambda code: code.name)
def test_the_runbook_says_what_the_operator_does_after_each_exit_code(code):
    rows = [line.split(" | ") for line in SECTIONS["Exit codes"].splitlines() if line.startswith("| ")]
    (row,) = (each for each in rows if str(code.value) in re.findall(r"\d+", each[0]))
    assert re.search(rf"\b{code.name}\b", row[1])
    assert ANSWERS[retry_class(code)] in row[2]
