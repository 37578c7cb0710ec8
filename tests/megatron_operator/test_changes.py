"""Which field of spec may change when: from its one declaration, for every field, held against the pods it shapes."""

from __future__ import annotations

import pytest

from job_values import job
from megatron_operator import admission_policy
from megatron_operator.desired import build
from megatron_operator.schema.parts import changes
from megatron_operator.schema.spec import spec
from spec_samples import nested, samples

SAMPLES = dict(samples())
WHEN = dict(changes(spec()))


def test_there_is_a_sample_of_every_field():
    outermost = {path.split(".")[0] for path in SAMPLES}
    assert outermost == {path for path in WHEN if "." not in path}


def merged(path, value):
    """The manifest of a two-node job with this one field changed."""
    part = nested(path, value)
    if path.startswith("checkpoint.") and path != "checkpoint.pvc":
        part["checkpoint"]["pvc"] = {"claimName": "disk"}
    return part


ALWAYS = [path for path in SAMPLES if WHEN[path] == "Always" and path not in ("suspend",)]


@pytest.mark.parametrize("path", ALWAYS)
def test_what_may_change_at_any_time_shapes_no_pod(path):
    assert build.everything(job(merged(path, SAMPLES[path])), 1) == build.everything(job(), 1)


def test_everything_else_waits_for_a_suspension_or_never_changes():
    fixed = admission_policy.changed_while_suspended()
    always = {path.split(".")[0] for path in ALWAYS} | {"suspend"}
    assert always == {"suspend", "runPolicy", "failurePolicy", "successPolicy"}
    assert {"args", *(path.split(".")[0] for path in WHEN)} - set(fixed) - always == {"managedBy", "task"}
    never = {path for path, when in WHEN.items() if when == "Never"} - {"managedBy", "task"}
    assert {path for path in never if not path.startswith("checkpoint.pvc.")} == {
        "checkpoint.pvc",
        "checkpoint.retainOnDelete",
    }
