"""What the operator counts about restarts, from the statuses that it writes."""

from megatron_operator.process.metrics import Metrics

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
