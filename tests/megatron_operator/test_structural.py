"""schema/structural: checking and defaulting as an API server does, but everything at once."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from megatron_operator.api.schema import parts, pod_template, structural

ROOT = Path(__file__).parent.parent.parent
SCHEMA = parts.record(
    "",
    {
        "count": parts.integer("", ge=1, le=9, default=3),
        "name": parts.text("", pattern=parts.Pattern("^[a-z]+$", "small letters"), max_length=5),
        "mode": parts.choice("", "Fast", "Slow", default="Fast"),
        "size": parts.quantity(""),
        "flag": parts.boolean(""),
        "list": parts.array("", parts.record("", {"x": parts.integer("", default=1)}, required=("x",)), max_items=2),
        "map": parts.text_map("", max_properties=1),
        "inner": {**parts.record("", {"deep": parts.integer("", default=7)}), "x-defaulted": True},
        "absent": parts.record("", {"deep": parts.integer("", default=7)}),
    },
    required=("name",),
)


def problems(**value):
    return {each.path: each.message for each in structural.check({"name": "a", **value}, SCHEMA, "spec")}


@pytest.mark.parametrize(
    ("value", "path", "part"),
    [
        ({"count": 0}, "spec.count", "at least 1"),
        ({"count": 10}, "spec.count", "at most 9"),
        ({"count": "3"}, "spec.count", "whole number without quotes"),
        ({"count": True}, "spec.count", "whole number"),
        ({"name": "A"}, "spec.name", "must be small letters"),
        ({"name": "abcdef"}, "spec.name", "longer than 5"),
        ({"name": None}, "spec.name", "required"),
        ({"mode": "fast"}, "spec.mode", "did you mean Fast?"),
        ({"size": "64GiB"}, "spec.size", "must be a quantity such as 8, 500m or 64Gi"),
        ({"flag": "true"}, "spec.flag", "true or false"),
        ({"list": [{"x": 1}, {"y": 2}]}, "spec.list[1].y", "known here: x"),
        ({"list": [{"x": 1}, {}]}, "spec.list[1].x", "required"),
        ({"list": {}}, "spec.list", "must be a list"),
        ({"list": [{"x": 1}] * 3}, "spec.list", "more than 2"),
        ({"map": {"a": 1}}, "spec.map.a", "must be text"),
        ({"map": {"a": "1", "b": "2"}}, "spec.map", "more than 1"),
        ({"inner": 3}, "spec.inner", "must be a mapping"),
        ({"coumt": 1}, "spec.coumt", "did you mean count?"),
        ({"zzzz": 1}, "spec.zzzz", "known here: "),
    ],
)
def test_what_is_wrong_is_said_at_its_path(value, path, part):
    assert part in problems(**value)[path]


def test_a_right_value_has_no_problem():
    assert problems(count=9, mode="Slow", size="1.5Gi", flag=True, list=[{"x": 2}], map={"a": "b"}, inner={}) == {}


def test_null_counts_as_not_given():
    assert problems(count=None, inner=None) == {}


def test_defaults_fill_what_is_silent_and_change_nothing_else():
    value = {"name": "a", "list": [{}], "mode": None}
    assert structural.defaulted(value, SCHEMA) == {
        "count": 3,
        "name": "a",
        "mode": "Fast",
        "list": [{"x": 1}],
        "inner": {"deep": 7},
    }
    assert value == {"name": "a", "list": [{}], "mode": None}


def test_the_pod_template_schema_is_what_the_kubernetes_client_says():
    pytest.importorskip("kubernetes.client", reason="needs the development extra")
    generator = runpy.run_path(str(ROOT / "crds" / "pod_template.py"))
    assert pod_template.overlay() == generator["pod_template"]()
