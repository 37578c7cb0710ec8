"""What is shown and alerted on is what the operator measures, and the runbook explains every condition and alert."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from local_cluster import helm_chart
from megatron_operator.api import names
from megatron_operator.process.metrics import Metrics
from tests.support.operator import dashboard

ROOT = Path(__file__).parent.parent.parent
MONITORING = helm_chart.CHART / "templates" / "monitoring.yaml"
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
# Made at scrape time from the jobs and the queue, not held by Metrics.
AT_SCRAPE = {
    *("megatron_jobs", "megatron_job_progress_ratio", "megatron_job_heartbeat_age_seconds"),
    *("megatron_operator_queue_depth", "megatron_operator_queue_oldest_seconds"),
}
# Reasons that conditions take besides those of failures of pods.
REASONS = {
    value
    for name, value in vars(names).items()
    if name
    in {
        *("WAITING_FOR_QUOTA", "GANG_UNSCHEDULABLE", "KUEUE_EVICTED", "PODS_PENDING", "POD_FAILED", "PREEMPTED"),
        *("NODE_LOST", "HUNG", "INVALID_SPEC", "MAX_RESTARTS_EXCEEDED", "NON_RETRYABLE_EXIT", "DEADLINE_EXCEEDED"),
        *(
            "STARTUP_FAILED",
            "OOM_KILLED",
            "OUT_OF_DEVICE_MEMORY",
            "FAILURE_POLICY",
            "GANG_SCHEDULER_MISSING",
            "KUEUE_MISSING",
        ),
        "PRIORITY_CLASS_MISSING",
    }
}


def named(text: str) -> set[str]:
    """Metrics that a text speaks of, without the endings of their series."""
    found = re.findall(r"\bmegatron_(?:jobs?|operator)\w*", text)
    return {re.sub(r"_(total|bucket|sum|count)$", "", each) for each in found}


def measured() -> set[str]:
    """Metrics that the operator has."""
    text = Metrics().text().decode()
    return {family.name for family in text_string_to_metric_families(text)} | AT_SCRAPE


def test_every_metric_of_dashboard_and_alerts_is_one_that_the_operator_has():
    shown = [query.text for query in dashboard.queries()]
    assert named(" ".join(shown)) - measured() == set()
    assert named("\n".join(re.findall(r"expr: (.*)", MONITORING.read_text()))) - measured() == set()


def test_the_runbook_answers_every_alert_and_every_reason():
    alerts = re.findall(r"alert: (\w+)", MONITORING.read_text())
    assert len(alerts) >= 4
    assert [alert for alert in alerts if f"### {alert}" not in RUNBOOK] == []
    assert [reason for reason in sorted(REASONS) if f"`{reason}`" not in RUNBOOK] == []
    assert len(REASONS) == 19
