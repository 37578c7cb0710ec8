"""The state folder of `mtj run`: private, quick to list, and one broken file does not hide the others."""

import time

import pytest
import yaml

from megatron_operator.cli.status import local_jobs
from megatron_operator.cluster.local.paths import Folders, NoSuchVolume, mapping
from megatron_operator.cluster.local.state import State

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


def test_three_thousand_jobs_are_listed_in_a_fraction_of_what_python_s_own_yaml_takes(tmp_path):
    for number in range(300):
        State(directory=tmp_path / f"job-{number}").write_status(STATUS)
    started = time.process_time()
    assert len(dict(local_jobs(tmp_path))) == 300
    ours_s = time.process_time() - started
    text = (tmp_path / "job-0" / "status.yaml").read_text()
    started = time.process_time()
    for _ in range(300):
        yaml.load(text, Loader=yaml.SafeLoader)
    assert ours_s < (time.process_time() - started) / 2


@pytest.mark.parametrize("sub_path", ["../other", "a/../../other", "/etc"])
def test_a_sub_path_does_not_lead_out_of_its_volume(tmp_path, sub_path):
    pod = {"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]}
    container = {"volumeMounts": [{"name": "data", "mountPath": "/data", "subPath": sub_path}]}
    folders = Folders(volumes=tmp_path / "volumes", scratch=tmp_path / "scratch")
    with pytest.raises(NoSuchVolume, match="leads out of its volume"):
        mapping(pod, container, folders, config={})
