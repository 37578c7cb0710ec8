"""What is sent to the server to turn one status into another, and what is written when it refuses a part."""

from __future__ import annotations

import asyncio
import json

import pytest

from megatron_operator.cluster.kubernetes.client import ApiError, api_error
from megatron_operator.cluster.kubernetes.status import merge_patch, write_status


def patched(target, patch):
    """RFC 7386, as the server does it."""
    result = dict(target)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            result[key] = patched(result.get(key) or {}, value)
        else:
            result[key] = value
    return result


@pytest.mark.parametrize(
    ("old", "new", "patch"),
    [
        ({}, {"phase": "Pending"}, {"phase": "Pending"}),
        ({"phase": "Running"}, {"phase": "Running"}, {}),
        ({"startTime": "x", "phase": "Running"}, {"phase": "Suspended"}, {"startTime": None, "phase": "Suspended"}),
        ({"a": {"x": 1, "y": 2}}, {"a": {"x": 1, "z": 3}}, {"a": {"y": None, "z": 3}}),
        ({"conditions": [1, 2]}, {"conditions": [2]}, {"conditions": [2]}),
    ],
    ids=["first", "same", "removed", "nested", "list as a whole"],
)
def test_the_patch_holds_only_what_differs_and_leads_to_the_new_status(old, new, patch):
    assert merge_patch(old, new) == patch
    assert patched(old, patch) == new


def condition(type_, **fields):
    return {"type": type_, "status": "True", "reason": "PodFailed", "message": "m", **fields}


STATUS = {
    "phase": "Failed",
    "conditions": [condition("Failed"), condition("Stalled")],
    "restarts": {"attempt": 1},
    "progress": {"iteration": 3},
    "lastFailure": {"message": "m"},
    "lastUpdatedTime": "now",
}


class Server:
    """An API server that refuses a status while `objects_to` says so, naming these fields."""

    def __init__(self, objects_to, *fields, code=422):
        self.objects_to, self.fields, self.code, self.writes = objects_to, fields, code, []

    async def patch(self, resource, namespace, name, body, *, subresource):
        self.writes.append(body["status"])
        if self.objects_to(body["status"]):
            raise ApiError(self.code, "Invalid", "no", fields=self.fields)
        return {"status": body["status"]}


def written(server, old=None):
    job = {"metadata": {"namespace": "n", "name": "j", "uid": "u", "resourceVersion": "1"}, "status": old or {}}
    return asyncio.run(write_status(server, job, STATUS))


def left_out(*names):
    return {name: value for name, value in STATUS.items() if name not in names}


def test_a_refused_field_is_left_out_and_the_rest_written():
    server = Server(lambda status: "progress" in status, "status.progress.metrics[0].name")
    found = written(server)
    assert found.job["status"] == left_out("progress")
    assert found.refusal.fields == server.fields


def test_a_stored_field_that_is_refused_now_is_removed():
    server = Server(lambda status: status.get("progress") is not None, "status.progress")
    found = written(server, {"progress": {"iteration": 1}})
    assert found.job["status"] == {**left_out("progress"), "progress": None}


@pytest.mark.parametrize(
    ("field", "part"),
    [("status.conditions[1].message", {"message": ""}), ("status.conditions[1].reason", {"reason": "NotWritable"})],
)
def test_a_refused_text_of_a_condition_never_costs_the_condition(field, part):
    def objects(status):
        return any(each == condition("Stalled") for each in status["conditions"])

    assert written(Server(objects, field)).job["status"]["conditions"] == [
        condition("Failed"),
        condition("Stalled", **part),
    ]


def test_a_condition_that_is_refused_as_a_whole_is_left_out():
    def objects(status):
        return len(status["conditions"]) > 1

    found = written(Server(objects, "status.conditions[1].type"))
    assert found.job["status"]["conditions"] == [condition("Failed")]


@pytest.mark.parametrize("code", [400, 403, 422])
def test_a_refusal_that_names_nothing_still_lets_the_job_fail(code):
    found = written(Server(lambda status: "progress" in status, code=code))
    assert set(found.job["status"]) == {"phase", "conditions", "restarts"}
    assert found.job["status"]["phase"] == "Failed"


def test_what_is_refused_whole_is_raised_and_a_conflict_never_reduced():
    with pytest.raises(ApiError):
        written(Server(lambda status: True))
    conflict = Server(lambda status: True, "status.progress", code=409)
    with pytest.raises(ApiError):
        written(conflict)
    assert len(conflict.writes) == 1


def test_a_status_of_which_only_the_refused_part_is_new_is_not_written_again():
    server = Server(lambda status: "progress" in status, "status.progress")
    found = written(server, {**left_out("progress"), "lastUpdatedTime": "before"})
    assert found.job["status"]["lastUpdatedTime"] == "before"
    assert len(server.writes) == 1


def test_the_servers_answer_names_the_fields():
    answer = b'{"reason": "Invalid", "message": "m", "details": {"causes": [{"field": "status.a"}, {"message": "x"}]}}'
    assert api_error(422, answer, {}).fields == ("status.a",)
    for odd in (b"[]", b"{}", b'{"details": 3}', b'{"details": {"causes": [1]}}', b"<html>"):
        assert api_error(422, odd, {}).fields == ()


OWN_WORDS = 'Pod "tune-a0-master-0" is invalid: spec.priority: Forbidden'


@pytest.mark.parametrize(
    ("code", "message", "is_own"),
    [
        (422, OWN_WORDS, True),
        (422, f'admission webhook "quota.example.com" denied the request: {OWN_WORDS}', False),
        (400, "Pod in version v1 cannot be handled as a Pod: json: cannot unmarshal", True),
        (400, 'admission webhook "quota.example.com" denied the request: it cannot be handled as a Pod', False),
    ],
)
def test_a_webhooks_refusal_is_not_the_servers_own_whatever_status_it_wraps(code, message, is_own):
    causes = {"causes": [{"field": "spec.priority"}]} if code == 422 else {}
    answer = json.dumps({"reason": "Invalid", "message": message, "details": causes}).encode()
    assert api_error(code, answer, {}).is_validation == is_own
