"""Two numbers of one status: the attempt of the ranks, and the one for which their pods were made.

They differ while ranks have started again in living pods. A pod bears its own attempt in its name; which one its ranks
have to be of, its launcher hears in the answer to its reports.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from megatron_operator.api import names
from megatron_operator.timestamp import to_seconds
from megatron_trainjob.launcher import MAX_INTERVAL_S, Directive, LauncherReport

Object = Mapping[str, Any]
REPORTS_PER_S = 50.0
WAITING_INTERVAL_S = 0.2
LONGEST_WAITING_INTERVAL_S = 10.0
BACK_OFF_INTERVAL_S = 5.0
INTERVAL_S = 1.0
LONE_INTERVAL_S = 10.0
SILENT_S = 2 * MAX_INTERVAL_S


@dataclass(frozen=True, kw_only=True)
class HeardReport:
    """The last report of a pod's launcher and when it came, in seconds since the epoch by our clock."""

    report: LauncherReport
    at: float

    @property
    def since(self) -> float:
        """When the ranks entered the reported state."""
        return self.at - self.report.age_s


def of_ranks(status: Object) -> int:
    """The present attempt that a status has written down: that of the ranks."""
    return int(status.get("restarts", {}).get("attempt", 0))


def of_pods(status: Object) -> int:
    """The attempt in the names of the present pods."""
    return int(status.get("restarts", {}).get("podAttempt", of_ranks(status)))


def interval_s(report: LauncherReport, of_job: int, in_all: int) -> float:
    """Seconds until a launcher shall report again: often enough to hear of a restart, bounded over all launchers.

    A launcher that waits for a decision asks often, unless many do, as when storage that all use is gone. One that is
    alone in its job hears of a hang only. in_all: how many others wait as it does, or do not.
    """
    if report.state == "failed":
        most_s = max(LONGEST_WAITING_INTERVAL_S, of_job / REPORTS_PER_S)
        return min(max(WAITING_INTERVAL_S, max(of_job, in_all) / REPORTS_PER_S), most_s)
    least_s = INTERVAL_S if of_job > 1 else LONE_INTERVAL_S
    return min(max(least_s, in_all / REPORTS_PER_S), MAX_INTERVAL_S)


def num_reporting(heard: Iterable[HeardReport], now: float) -> int:
    """How many launchers still report; those of pods that have ended do not, though their last word is kept."""
    return sum(now - each.at < SILENT_S for each in heard)


def directive(
    status: Object, pod: names.Place, report: LauncherReport, now: float, interval_s: float
) -> Directive | None:
    """The command for this pod's launcher; None for a report of an attempt that no one has decided.

    The status is the stored one: an attempt is written down before anyone hears of it, and its back-off is over.
    """
    attempt = of_ranks(status)
    if report.attempt > attempt:
        return None
    if pod.attempt != of_pods(status) or _is_finished(status):
        return Directive(attempt=report.attempt, ends=True, interval_s=interval_s)
    retry = to_seconds(status.get("restarts", {}).get("nextRetryTime"))
    if retry is None or now >= retry:
        return Directive(attempt=attempt, interval_s=interval_s)
    return Directive(attempt=report.attempt, interval_s=max(interval_s, min(retry - now, BACK_OFF_INTERVAL_S)))


def _is_finished(status: Object) -> bool:
    ends = (names.SUCCEEDED, names.FAILED)
    return any(each["type"] in ends and each["status"] == "True" for each in status.get("conditions", ()))
