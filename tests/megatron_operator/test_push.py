"""push and progress records: what programs say of themselves is taken within the bounds of the status, or refused."""

from __future__ import annotations

import json
import math

import pytest

from job_values import NOW, job, pod, seen
from megatron_operator import progress_record, push, status
from megatron_operator.decide.decision import Continue
from megatron_operator.schema import structural
from megatron_operator.schema.status import status as status_schema

RECORD = {"phase": "training", "iteration": 3, "total_iterations": 10, "metrics": {"loss": 1.5}}


def written(progress):
    """The status of a running job whose trainer said this; fails where the API server would refuse it."""
    computed = status.compute(job(), seen(pod(), progress=progress), Continue(), NOW)
    assert not list(structural.check(computed, status_schema(), "status"))
    return json.loads(json.dumps(computed, allow_nan=False))["progress"]


def pushed(**fields):
    progress, problems = push.read({"progress": {**RECORD, **fields}}, 0, NOW)
    return written(progress), problems


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e300, -1, "soon", [], 10**400])
@pytest.mark.parametrize("field", ["remaining_s", "elapsed_s"])
def test_times_that_no_status_can_hold_are_left_out(field, value):
    shown, problems = pushed(**{field: value})
    assert (shown["iteration"], len(problems)) == (3, 1)
    assert "estimatedRemainingSeconds" not in shown


@pytest.mark.parametrize("field", ["iteration", "total_iterations", "checkpoint_iteration"])
@pytest.mark.parametrize("value", [-1, 10**30, 10**400, 1.5, "3", True, [3]])
def test_counts_that_are_none_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        push.read({"progress": {**RECORD, field: value}}, 0, NOW)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"phase": "dancing"}, "phase"),
        ({"phase": None}, "phase"),
        ({"phase": ["training"]}, "phase"),
        ({"metrics": [1]}, "metrics"),
        ({"metrics": {"loss": "high"}}, "loss"),
        ({"metrics": {"loss": 10**400}}, "loss"),
        ({"metrics": {"loss": [1]}}, "loss"),
        ({"checkpoint_path": 7}, "checkpoint_path"),
    ],
)
def test_what_is_of_another_kind_is_refused_by_name(fields, named):
    with pytest.raises(ValueError, match=named):
        push.read({"progress": {**RECORD, **fields}}, 0, NOW)


def test_long_names_and_paths_are_cut_and_it_is_said():
    channels = {f"loss_{'x' * 300}{index}": 1.0 for index in range(40)}
    shown, problems = pushed(metrics=channels, checkpoint_iteration=3, checkpoint_path="/p" * 5000)
    assert len(shown["metrics"]) == 1
    assert len(shown["metrics"][0]["name"]) == 128
    assert {problem.split(":")[0] for problem in problems} == {"progress.metrics", "progress.checkpoint_path"}


def test_a_metric_that_is_not_finite_is_shown_as_it_is():
    shown, problems = pushed(metrics={"loss": math.nan, "norm": math.inf})
    assert [each["value"] for each in shown["metrics"]] == ["nan", "inf"]
    assert problems == ()


@pytest.mark.parametrize("percentage", [math.inf, 10**400, -5, "half", 3.5])
def test_an_odd_percentage_of_a_kubeflow_client_is_refused(percentage):
    with pytest.raises(ValueError, match="iteration"):
        push.read({"trainerStatus": {"progressPercentage": percentage}}, 0, NOW)


@pytest.mark.parametrize("body", [None, [], {"trainerStatus": 3}, {"trainerStatus": {"metrics": [1]}}, {"progress": 1}])
def test_a_body_of_another_shape_is_refused_or_says_nothing(body):
    try:
        progress, _ = push.read(body, 0, NOW)
    except ValueError:
        return
    assert written(progress)["iteration"] == 0


def test_more_than_all_iterations_are_a_hundred_percent():
    assert pushed(iteration=2**53, total_iterations=1)[0]["percentage"] == 100


@pytest.mark.parametrize(
    "content", ["[" * 5000, "{", '{"phase": "training", "iteration": "x"}', '{"phase": 1}', "[]", "\x00", " " * 70_000]
)
def test_a_record_file_that_is_none_of_ours_is_not_there(tmp_path, content):
    (tmp_path / "progress.json").write_text(content)
    assert progress_record.read_file(tmp_path / "progress.json") is None
    assert progress_record.read_file(tmp_path) is None
