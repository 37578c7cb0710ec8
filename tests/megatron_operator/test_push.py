"""push and progress records: what programs say of themselves is taken within the bounds of the status, or refused."""

from __future__ import annotations

import asyncio
import base64
import json
import math

import pytest

from megatron_operator.api import names
from megatron_operator.api.schema import structural
from megatron_operator.api.schema.status import status as status_schema
from megatron_operator.core import progress_record, push, status
from megatron_operator.core.decide.decision import Continue
from megatron_operator.core.push import Reporter
from megatron_operator.process.token_review import MAX_REFUSALS, TokenReviews, TooManyRefusals
from megatron_trainjob.progress import Progress
from tests.support.operator.job_values import NOW, job, pod, seen

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
def test_a_foreign_record_file_counts_as_missing(tmp_path, content):
    (tmp_path / "progress.json").write_text(content)
    assert progress_record.read_file(tmp_path / "progress.json") is None
    assert progress_record.read_file(tmp_path) is None


AUDIENCE = push.audience("team", "tune", "uid-1")


def token(number=0, *, audience=AUDIENCE, exp=9e9):
    claims = {"aud": [audience], "exp": exp, "number": number}
    return f"h.{base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip('=')}.s"


class ReviewingServer:
    """An API server that knows one good token."""

    def __init__(self):
        self.asked = 0

    async def request(self, verb, resource, path, *, body):
        self.asked += 1
        user = {"username": "system:serviceaccount:team:default", "extra": {push.POD_NAME_CLAIM: ["tune-a0-master-0"]}}
        is_good = body["spec"]["token"] == token()
        return {"status": {"authenticated": is_good, "user": user, "audiences": body["spec"]["audiences"]}}


def test_a_token_is_asked_about_once_whether_good_or_not():
    async def ask():
        server = ReviewingServer()
        reviews = TokenReviews(server)
        for _ in range(3):
            assert await reviews.reporter(token(), "team", AUDIENCE, "a") == Reporter(
                namespace="team", pod="tune-a0-master-0"
            )
            assert await reviews.reporter(token(1), "team", AUDIENCE, "b") is None
        return server.asked

    assert asyncio.run(ask()) == 2


@pytest.mark.parametrize(
    "text", ["", "x", "a.b.c", "h." + "A" * 5000 + ".s", "x" * 10_000, token(audience="other"), token(exp=1)]
)
def test_what_can_be_no_token_is_refused_without_asking(text):
    async def ask():
        server = ReviewingServer()
        assert await TokenReviews(server).reporter(text, "team", AUDIENCE, "a") is None
        return server.asked

    assert asyncio.run(ask()) == 0


def test_a_flood_of_wrong_tokens_is_cut_off_and_the_known_one_still_counts():
    async def ask():
        server = ReviewingServer()
        reviews = TokenReviews(server)
        await reviews.reporter(token(), "team", AUDIENCE, "a")
        for number in range(1, MAX_REFUSALS + 1):
            await reviews.reporter(token(number), "team", AUDIENCE, "a")
        with pytest.raises(TooManyRefusals):
            await reviews.reporter(token(99), "team", AUDIENCE, "a")
        assert await reviews.reporter(token(), "team", AUDIENCE, "a")
        assert await reviews.reporter(token(100), "team", AUDIENCE, "another source") is None
        return server.asked

    assert asyncio.run(ask()) == MAX_REFUSALS + 2


def test_a_token_of_a_job_is_worth_nothing_for_one_made_again_under_its_name():
    assert push.audience("team", "tune", "uid-1") != push.audience("team", "tune", "uid-2")
    assert push.expiry_for(token(), push.audience("team", "tune", "uid-2")) is None


@pytest.mark.parametrize(
    ("attempt", "current", "reported", "is_past"),
    [
        (0, 0, None, False),
        (1, 2, None, False),
        (0, 2, None, True),
        (3, 2, None, True),
        (1, 2, 2, True),
        (2, 2, 1, False),
    ],
)
def test_the_report_of_an_earlier_attempt_counts_until_the_present_one_reports(attempt, current, reported, is_past):
    before = None if reported is None else Progress(phase="training", attempt=reported)
    assert push.is_past(attempt, attempt, {"restarts": {"attempt": current}}, before) is is_past


@pytest.mark.parametrize(
    ("attempt", "pod_attempt", "is_past"),
    [(5, 3, False), (4, 3, False), (3, 3, True), (6, 3, True), (5, 2, True), (5, 5, True), (2, 3, True)],
)
def test_ranks_that_started_again_in_their_pods_report_under_their_own_attempt(attempt, pod_attempt, is_past):
    status = {"restarts": {"attempt": 5, "podAttempt": 3}}
    assert push.is_past(attempt, pod_attempt, status, None) is is_past


@pytest.mark.parametrize(("given", "attempt"), [(None, 3), ("7", 7)])
def test_a_push_says_which_attempt_it_is_about(given, attempt):
    assert push.attempt_of(names.Place(attempt=3, role="master", index=0), given) == attempt


@pytest.mark.parametrize("given", ["", "-1", "x", "1" * 12])
def test_a_push_about_no_attempt_is_refused(given):
    with pytest.raises(ValueError, match="attempt"):
        push.attempt_of(names.Place(attempt=3, role="master", index=0), given)
