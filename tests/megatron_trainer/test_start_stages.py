"""The stages of a start: what the launcher reads, and the line of the log."""

from __future__ import annotations

import json
from dataclasses import replace

from megatron_trainer import environment, start_stages


def test_the_first_step_is_noted_once_and_told_with_the_seconds_of_each_stage(tmp_path, caplog):
    path = tmp_path / "stages"
    env = replace(environment.read(), rank=0, stages_file=path)
    start_stages.begin(path)
    start_stages.note(env, "processGroup")
    start_stages.note(env, "loaded")
    caplog.set_level("INFO")
    done = start_stages.first_step_of(env)
    done()
    done()
    assert list(start_stages.moments(path)) == ["began", "processGroup", "loaded", "firstStep"]
    assert len(path.read_text().splitlines()) == 4
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("first step after 0.0 s: imports and process group 0.0, data and model 0.0, ")


def test_seconds_are_those_since_the_stage_before(tmp_path):
    path = tmp_path / "stages"
    lines = {"began": 100.0, "processGroup": 105.94, "loaded": 108.0, "firstStep": 109.3}
    path.write_text("".join(json.dumps({"stage": stage, "at": at}) + "\n" for stage, at in lines.items()))
    expected = "first step after 9.3 s: imports and process group 5.9, data and model 2.1, first step 1.3"
    assert start_stages.in_words(path) == expected


def test_a_file_that_cannot_be_written_ends_neither_launcher_nor_run(tmp_path):
    gone = tmp_path / "gone" / "stages"
    env = replace(environment.read(), rank=0, stages_file=gone)
    start_stages.begin(gone)
    start_stages.note(env, "loaded")
    start_stages.first_step_of(env)()


def test_other_ranks_and_ranks_without_a_launcher_tell_nothing(tmp_path, caplog):
    caplog.set_level("INFO")
    for env in (
        replace(environment.read(), rank=1, stages_file=tmp_path / "stages"),
        replace(environment.read(), rank=0, stages_file=None),
    ):
        start_stages.first_step_of(env)()
    assert not caplog.messages
    assert not list(tmp_path.iterdir())
