"""Tests of the probes that say whether a machine can be a node."""

from __future__ import annotations

import pytest

from local_cluster import node_machine


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("true", ""),
        ("mkdir inside && touch inside/file", ""),
        ("echo no wings >&2; echo none at all >&2; exit 3", "no wings"),
        ("exit 3", "exit code 3"),
    ],
)
def test_a_probe_that_fails_says_why_in_one_line(command: str, answer: str):
    assert node_machine.problem(command) == answer


def test_every_probe_either_passes_or_gives_a_reason():
    answers = {what: node_machine.problem(command) for what, command in node_machine.PROBES.items()}
    assert all(not answer or answer.isprintable() for answer in answers.values())


def test_every_missing_permission_of_a_machine_is_reported(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(node_machine, "PACKAGES", {})
    with pytest.raises(node_machine.Unavailable, match=r"may not fly \(no wings\); swim \(exit code 1\)$"):
        node_machine.check({"fly": "echo no wings >&2; exit 1", "walk": "true", "swim": "exit 1"})
