"""Numbers that docs/operator.md and docs/runbook.md give for what the operator does are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megatron_operator.api import spec
from megatron_operator.core import events
from megatron_operator.core.decide import backoff, completion, failure, in_place, late_ranks, restart, whole
from megatron_operator.process import controller, listener, token_review
from megatron_trainjob.environment import DEFAULT_LAUNCHER_PATIENCE_S
from megatron_trainjob.exit_codes import RESTARTED, ends_for_good

DOCS = Path(__file__).parents[2] / "docs"
WORDS = {"a minute": 60, "a day": 86400, "twice": 2, "three": 3, "ten": 10, "third": 3}


def default(path: str) -> int:
    """The default of a field of the manifest."""
    schema = spec.spec_schema()
    for part in path.split("."):
        schema = schema["properties"][part]
    return int(schema["default"])


STATED = [
    ("operator", r"has not started its ranks within\s+(\d+) s", [late_ranks.START_S]),
    ("operator", r"the back-off is longer than (\d+) s", [in_place.LONGEST_DELAY_S]),
    ("operator", r"hears nothing from\s+the operator for (a minute)", [DEFAULT_LAUNCHER_PATIENCE_S]),
    ("operator", r"from the (third) end in one pod on", [in_place.MOST_CONTAINER_RESTARTS + 2]),
    ("operator", r"the job failed (twice)\s", [default("failurePolicy.nodeExclusion.afterFailures")]),
    ("operator", r"At most `maxNodes` \((\d+)\)", [default("failurePolicy.nodeExclusion.maxNodes")]),
    ("operator", r"used again (a day)", [default("failurePolicy.nodeExclusion.forgetAfterSeconds")]),
    ("operator", r"the workers have (a minute) to\s+end", [completion.COMPLETION_GRACE_S]),
    (
        "operator",
        r"waits (ten) seconds for the rest of one",
        [listener.Limits(connections=1, connections_of_source=1).request_s],
    ),
    ("runbook", r"pods end within (three) seconds", [failure.CAUSE_WITHIN_S]),
    ("runbook", r"when that happened (ten) times in a row", [restart.MAX_IN_A_ROW]),
    ("runbook", r"retried every (\d+) to (\d+) s", whole.PAUSE_S),
    ("runbook", r"has not ended (a minute) after its grace period", [backoff.LATE_S]),
    ("runbook", r"or for (\d+) s any error", [controller.LASTING_S]),
    ("runbook", r"posts those of the last (\d+) minutes", [events.RECENT_S / 60]),
    ("runbook", r"sent (ten) wrong tokens within (ten)\s+seconds", [token_review.MAX_REFUSALS, token_review.REFUSED_S]),
    ("runbook", r"\| (\d+) to (\d+) \| as 132 to 139", [ends_for_good(min(RESTARTED)), ends_for_good(max(RESTARTED))]),
]


@pytest.mark.parametrize(("page", "pattern", "numbers"), STATED, ids=lambda value: str(value)[:40])
def test_a_number_of_a_page_is_that_of_the_code(page, pattern, numbers):
    (found,) = re.findall(pattern, (DOCS / f"{page}.md").read_text())
    words = [found] if isinstance(found, str) else found
    assert [WORDS.get(word) or int(word) for word in words] == list(numbers)
