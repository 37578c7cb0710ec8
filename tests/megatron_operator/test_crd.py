"""crd: the definition is current, small, structural, and agrees with the rest of the operator."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from megatron_operator import generate, manifest
from megatron_operator.api import admission_policy, crd
from megatron_operator.api.schema import structural
from megatron_operator.api.schema.status import status as status_schema
from megatron_operator.core import reconcile
from megatron_operator.core.job import Job
from megatron_operator.core.observe import Seen
from megatron_trainjob.args import admission
from tests.support.operator.job_values import NOW, beat, failed, job, pod, raw, seen

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def definition():
    return crd.definition()


def root_schema(definition):
    return definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


@pytest.mark.parametrize("name", generate.FILES)
def test_the_file_in_the_repository_is_what_the_code_makes(name):
    assert (ROOT / name).read_text() == generate.FILES[name]()


def test_it_is_small_enough_for_client_side_apply(definition):
    assert len(json.dumps(definition, separators=(",", ":"))) < 150_000


def test_names_are_those_that_people_type(definition):
    assert definition["spec"]["names"] == {
        "kind": "MegatronTrainJob",
        "listKind": "MegatronTrainJobList",
        "plural": "megatrontrainjobs",
        "singular": "megatrontrainjob",
        "shortNames": ["mtj", "mtjob"],
        "categories": ["all", "training"],
    }


def test_every_column_shows_a_scalar_that_the_schema_has(definition):
    for column in crd.columns():
        path = column["jsonPath"].lstrip(".").split(".")
        if path[0] == "metadata":
            continue
        schema = root_schema(definition)
        for part in path:
            schema = schema["properties"][part]
        assert schema["type"] == column["type"]


def walk(schema, path="spec"):
    yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from walk(part, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from walk(schema[key], f"{path}[]")


def test_the_schema_is_structural(definition):
    """Every value has a type or is marked open, and none of the forbidden keywords is used."""
    for path, schema in walk(root_schema(definition)):
        is_open = schema.get("x-kubernetes-int-or-string") or schema.get("x-kubernetes-preserve-unknown-fields")
        assert schema.get("type") or is_open, path
        assert not {"$ref", "definitions", "dependencies", "discriminator", "patternProperties"} & set(schema), path
        assert not ("properties" in schema and "additionalProperties" in schema), path
        assert set(schema.get("required", ())) <= set(schema.get("properties", {})), path


def test_no_argument_of_the_trainer_has_a_default(definition):
    arguments = root_schema(definition)["properties"]["spec"]["properties"]["args"]
    assert not [path for path, schema in walk(arguments) if "default" in schema]


def test_only_two_defaults_are_stored_in_a_job(definition):
    spec = root_schema(definition)["properties"]["spec"]
    assert {path: schema["default"] for path, schema in walk(spec) if "default" in schema} == {
        "spec.numNodes": 1,
        "spec.nprocPerNode": "auto",
    }


def test_our_own_marks_do_not_reach_the_server(definition):
    assert not [mark for mark in crd.MARKS if mark in json.dumps(definition)]


def test_no_object_of_ours_drops_a_field_that_it_does_not_know(definition):
    """A server that drops a misspelt field without a word runs another job than the one that was asked for."""
    open_ones = {
        path
        for path, schema in walk(root_schema(definition)["properties"]["spec"])
        if "properties" in schema and schema.get("x-kubernetes-preserve-unknown-fields")
    }
    assert {path for path, _ in admission_policy.records()} <= open_ones
    assert {"spec", "spec.args", "spec.initializers[]", "spec.failurePolicy.rules[]"} <= open_ones


@pytest.mark.parametrize(
    "status",
    [
        reconcile.plan(job(), Seen(problem=("QuotaExceeded", "no room")), NOW).status,
        reconcile.plan(job(), seen(pod(0), failed(1, 137, iteration=3)), NOW).status,
        reconcile.plan(
            job({"scheduling": {"gang": "Native"}}),
            seen(pod(0), pod(1), progress=beat(checkpoint_iteration=5, metrics={"loss": 1.0}, remaining_s=3.0)),
            NOW,
        ).status,
        reconcile.reject(raw(), (), Seen(), NOW).status,
    ],
    ids=["new", "restarted", "running", "rejected"],
)
def test_nothing_that_is_written_into_a_status_would_be_dropped(status):
    assert list(structural.check(json.loads(json.dumps(status)), status_schema(), "status")) == []


def test_a_manifest_with_stored_defaults_is_the_same_job():
    """What the API server fills in must not change the job that the operator reads."""
    stored = raw({"numNodes": 1, "nprocPerNode": "auto"})
    plain = raw()
    del plain["spec"]["numNodes"]
    parsed = manifest.parse(plain)
    assert isinstance(parsed, Job)
    assert parsed == manifest.parse(stored)


def test_the_example_of_each_golden_file_satisfies_the_schema(definition):
    for file in (Path(__file__).parent / "golden").glob("*.job.yaml"):
        document = yaml.safe_load(file.read_text())
        schema = root_schema(definition)["properties"]["spec"]
        assert list(structural.check(document["spec"], schema, "spec")) == []


def test_each_check_of_the_admission_policies_is_reached_by_each_of_its_arguments():
    """Groups of checks are looked at only where one of their arguments is given."""
    problem, warning = (
        next(each["expression"] for each in document["spec"]["variables"] if each["name"] == "problems")
        for document in admission_policy.documents()
        if document["kind"] == "ValidatingAdmissionPolicy"
    )
    for expression, checks in ((problem, admission.checks()), (warning, admission.remarks())):
        groups = expression.split("variables.args.exists(name, name in [")
        for check in checks:
            (group,) = [each for each in groups if f"{check.holds} ? ''" in each]
            gate = group.partition("])")[0]
            assert not check.is_idle or all(f"'{name}'" in gate for name in check.arguments)
            assert not check.is_idle or check.arguments
