"""Which field of spec may change when: from its one declaration, for every field, held against the pods it shapes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_operator.api import admission_policy
from megatron_operator.api.schema.parts import changes
from megatron_operator.api.spec import spec_schema
from megatron_operator.core.desired import build
from tests.support.operator.job_values import ARGS, job
from tests.support.operator.spec_samples import nested, samples

SAMPLES = dict(samples())
WHEN = dict(changes(spec_schema()))


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


RACK = {"topology": {"key": "rack", "exclusive": True}}
NEEDS = {  # what else a manifest must say for the field to be allowed
    "volumeMounts": {"volumes": SAMPLES["volumes"]},
    "checkpoint.memory.intervalIterations": {"checkpoint": {"memory": {"sizeLimit": "1Gi"}}},
    "scheduling.minMember": {"scheduling": {"gang": "Volcano"}},
    "scheduling.queue": {"scheduling": {"gang": "Volcano"}},
    "scheduling.scheduleTimeoutSeconds": {"scheduling": {"gang": "Coscheduling", "schedulerName": "x"}},
    "scheduling.topology.key": {"scheduling": RACK},
    "scheduling.topology.highestTierAllowed": {
        "scheduling": {"gang": "Volcano", "topology": {"highestTierAllowed": 1}},
    },
    "scheduling.topology.mode": {"scheduling": RACK},
    "scheduling.topology.exclusive": {"scheduling": {"gang": "Native", "topology": {"key": "rack"}}},
}
# Where the sample is what the two-node job of these tests has already.
OTHERS = {"numNodes": 3, "checkpoint.pvc": {"claimName": "other"}, "scheduling.minMember": 1}


def deep(first, second):
    """Both mappings in one, the second one's values where both have some."""
    both = {key: deep(first[key], second[key]) for key in first if key in second and isinstance(first[key], dict)}
    return {**first, **second, **both}


@pytest.mark.parametrize("path", [path for path in SAMPLES if path not in ("strict", "managedBy", "task")])
def test_every_field_that_is_accepted_reaches_the_job(path):
    """A field that the schema takes and the reader forgets would vanish without a word."""
    base = {"checkpoint": {"pvc": {"claimName": "disk"}}, "args": {**ARGS, "global_batch_size": 48}}
    base = deep(base, NEEDS.get(path, {}))
    given = deep(base, nested(path, OTHERS.get(path, SAMPLES[path])))
    known = {"labels": {"x": "1"}, "annotations": {"x": "1"}}
    assert replace(job(given, **known), warnings=()) != replace(job(base, **known), warnings=())
