"""status.lastRestart: when the last restart passed each of its phases, by this operator's clock.

Decision and attempt are written with the restart; what launchers report later rides along with the progress.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_operator.core.decide import in_place
from megatron_operator.core.decide.decision import Decision, Restart
from megatron_operator.core.observe import Seen
from megatron_operator.timestamp import to_milliseconds_text

Object = Mapping[str, Any]


def describe(seen: Seen, decision: Decision, attempt: int, now: float) -> Object | None:
    """The record after this decision, None before the first restart."""
    if isinstance(decision, Restart):
        return {
            "attempt": attempt,
            "inPlace": decision.in_place,
            "reason": decision.reason,
            "detectedTime": to_milliseconds_text(min(decision.failure.time, now)),
            "decidedTime": to_milliseconds_text(now),
        }
    stored: Object | None = seen.status.get("lastRestart")
    if stored is None or stored.get("attempt") != seen.attempt or "firstStepTime" in stored:
        return stored
    return {**stored, **{name: at for name, at in _reported(seen).items() if name not in stored}}


def _reported(seen: Seen) -> dict[str, str]:
    """Name and time of each phase that launchers have reported."""
    times: dict[str, str] = {}
    if (started := in_place.started_at(seen)) is not None:
        times["ranksStartedTime"] = to_milliseconds_text(started)
    master = in_place.of_attempt(seen, seen.current[0]) if seen.current else None
    stages = master.report.stages_s if master and master.report.state == "running" else {}
    return times | {
        f"{stage}Time": to_milliseconds_text(master.since + seconds) for stage, seconds in stages.items() if master
    }
