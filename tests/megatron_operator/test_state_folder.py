"""The state folder of `mtj run`: private, quick to list, and one broken file does not hide the others."""

import os
import time

import pytest

from megatron_operator.cli import logs, main
from megatron_operator.cli.status import local_jobs
from megatron_operator.cluster.local import process
from megatron_operator.cluster.local.paths import Folders, NoSuchVolume, mapping
from megatron_operator.cluster.local.state import State
from megatron_trainjob import input_file

STATUS = {
    "phase": "Running",
    "progress": {"percentage": 40, "metrics": [{"name": f"m{i}", "value": "1.0"} for i in range(12)]},
    "conditions": [{"type": t, "status": "True", "reason": "r", "message": "m" * 40} for t in ("Created", "Running")],
}


def test_the_state_is_its_owners_alone(tmp_path):
    state = State(directory=tmp_path / "state" / "job")
    with state.locked():
        state.write_status(STATUS)
    assert state.directory.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe", b"a: &a [*b]", b"!!python/object/apply:os.system [ls]"])
def test_one_broken_status_does_not_hide_the_others(tmp_path, content):
    for name in ("one", "two", "three"):
        State(directory=tmp_path / name).write_status(STATUS)
    (tmp_path / "two" / "status.yaml").write_bytes(content)
    found = dict(local_jobs(tmp_path))
    assert {name: status["phase"] for name, status in found.items()} == {
        "one": "Running",
        "three": "Running",
        "two": "Unreadable",
    }


def test_a_list_of_jobs_reads_one_file_a_job_and_no_yaml(tmp_path, monkeypatch):
    """What takes the time over 3,000 jobs: reading YAML, ten to a hundred times that of JSON."""
    for number in range(30):
        State(directory=tmp_path / f"job-{number}").write_status(STATUS)
    read = []
    read_text = input_file.read_text
    monkeypatch.setattr(input_file, "read_text", lambda path: read.append(path) or read_text(path))
    monkeypatch.setattr("yaml.load", None)
    assert len(dict(local_jobs(tmp_path))) == 30
    assert len(read) == 30


def test_a_long_list_has_the_columns_of_a_short_one(tmp_path, capsys):
    def listed(number):
        State(directory=tmp_path / f"job-{number}\x1b[2J").write_status({**STATUS, "phase": "[red]"})
        assert main(["status", "--state-dir", str(tmp_path)]) == 0
        return [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]

    short = listed(0)
    for number in range(1, 201):
        State(directory=tmp_path / f"job-{number}").write_status(STATUS)
    long = listed(0)
    assert len(long) == 202
    assert long[0] == short[0]
    assert short[1] in long


@pytest.mark.parametrize(
    "content", ["progress: 7", "phase: [1]", "restarts: {total: [1]}", 'phase: "\\e[2J"', '{"phase": 1']
)
def test_a_status_of_another_shape_does_not_end_the_list(tmp_path, content, capsys):
    for name in ("one", "two\x1b[2J\n", "three"):
        State(directory=tmp_path / name).write_status(STATUS)
    (tmp_path / "three" / "status.yaml").write_text(content)
    assert main(["status", "--state-dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("Running") >= 2
    assert "\x1b" not in printed
    assert "two\\x1b[2J\\n" in printed


def test_a_pipe_in_place_of_a_status_does_not_hang(tmp_path):
    (tmp_path / "job").mkdir()
    os.mkfifo(tmp_path / "job" / "status.yaml")
    assert dict(local_jobs(tmp_path)) == {"job": {"phase": "Unreadable"}}


def test_a_program_that_prints_indefinitely_keeps_a_bounded_log(tmp_path):
    log = tmp_path / "pod.log"
    with log.open("ab") as output:
        for number in range(40):
            output.write(f"line {number:04d}\n".encode() * 100)
            output.flush()
            process.bound_log(log, most_bytes=10_000)
            assert log.stat().st_size <= 10_200
    assert (tmp_path / "pod.log.1").stat().st_size <= 10_000
    assert log.read_text().startswith("mtj: the log had ")
    last = (tmp_path / "pod.log.1").read_text() + log.read_text()
    assert "line 0039" in last
    assert list(tmp_path.glob("*.log")) == [log]


def test_a_followed_log_continues_after_rotation_and_splits_no_character(tmp_path, monkeypatch):
    state = State(directory=tmp_path / "job")
    state.write_status({"phase": "Running"})
    log = tmp_path / "job" / "logs" / "job-master-0.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"a" * 100 + "ü".encode()[:1])
    steps = iter(
        [
            lambda: log.write_bytes(b"a" * 100 + "ü\n".encode()),
            lambda: process.bound_log(log, most_bytes=50),
            lambda: log.open("ab").write(b"new line\n"),
            lambda: state.write_status({"phase": "Succeeded"}),
        ]
    )
    monkeypatch.setattr(time, "sleep", lambda _: next(steps)())
    text = "".join(logs._read(state, log, "master", follow=True))
    first, told, last = text.splitlines()
    assert first == "a" * 100 + "ü"
    assert told.startswith("mtj: the log had 103 bytes; its end is in job-master-0.log.1")
    assert last == "new line"


@pytest.mark.parametrize("sub_path", ["../other", "a/../../other", "/etc"])
def test_a_sub_path_does_not_lead_out_of_its_volume(tmp_path, sub_path):
    pod = {"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]}
    container = {"volumeMounts": [{"name": "data", "mountPath": "/data", "subPath": sub_path}]}
    folders = Folders(volumes=tmp_path / "volumes", scratch=tmp_path / "scratch")
    with pytest.raises(NoSuchVolume, match="leads out of its volume"):
        mapping(pod, container, folders, config={})
