"""What is sent to the server to turn one status into another."""

from __future__ import annotations

import pytest

from megatron_operator.cluster.kubernetes_apply import merge_patch


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
