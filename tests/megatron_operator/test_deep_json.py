"""JSON that is nested deeper than Python's decoder goes: read as far as anything can use it."""

from __future__ import annotations

import json

import pytest

from megatron_operator.cluster.kubernetes import client
from megatron_operator.process import deep_json

LEVELS = 5000


def nested(levels):
    return '{"a": ' * levels + "1" + "}" * levels


@pytest.fixture
def installed():
    """The decoder as the operator has it, for one test."""
    before = json._default_decoder.decode
    deep_json.install()
    yield
    json._default_decoder.decode = before


def depth_of(value):
    depth = 0
    while isinstance(value, dict):
        value, depth = value.get("a"), depth + 1
    return depth


def test_a_job_nested_thousands_of_levels_deep_is_read_without_what_lies_that_deep(installed):
    text = f'{{"metadata": {{"name": "x{{"}}, "spec": {nested(LEVELS)}, "status": {{"b": [1, "}}\\\\\\""]}}}}'
    found = json.loads(text)
    assert found["metadata"] == {"name": "x{"}
    assert found["status"] == {"b": [1, '}\\"']}
    assert depth_of(found["spec"]) == deep_json.MAX_DEPTH - 1


def test_deep_lists_are_cut_too_and_what_follows_is_kept(installed):
    found = json.loads("[" + "[" * LEVELS + "]" * LEVELS + ', {"after": 2}]')
    assert found[1] == {"after": 2}


def test_what_is_not_deep_is_read_as_ever(installed):
    assert json.loads(nested(deep_json.MAX_DEPTH + 50)) is not None
    assert deep_json.cut(nested(50)) == nested(50)


@pytest.mark.parametrize("text", ['{"a": ' * LEVELS, "}" * 10, '{"a" 1}', ""])
def test_what_is_no_json_is_an_error_as_ever(installed, text):
    with pytest.raises(json.JSONDecodeError):
        json.loads(text)


@pytest.mark.parametrize("levels", [50, 1_000, LEVELS])
def test_the_client_reads_what_is_nested_deeper_than_its_own_decoder_goes(installed, levels):
    found = client._decoded(f'{{"spec": {nested(levels)}, "after": 2}}'.encode())
    assert (depth_of(found["spec"]) >= min(levels, deep_json.MAX_DEPTH - 1), found["after"]) == (True, 2)


def test_the_client_reads_half_a_surrogate_pair_as_pythons_decoder_does():
    assert client._decoded(b'{"message": "\\ud800 and more"}') == {"message": "\ud800 and more"}


@pytest.mark.parametrize("payload", [b'{"a": 1', b"<html>", b"", b"[1]", b'"text"', b'{"a": "\xff"}'])
def test_the_client_says_of_anything_but_an_object_that_it_is_unreadable(payload):
    with pytest.raises(client.ApiError) as raised:
        client._decoded(payload)
    assert (raised.value.status, raised.value.reason) == (0, "Unreadable")
