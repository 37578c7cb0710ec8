"""One folder, one job: whoever comes second is refused while the first lives, and afterwards unless it says so."""

import json
import os
import subprocess
import sys
import time

import pytest
import yaml

from megatron_trainer.checkpoint import folder, lease
from megatron_trainer.checkpoint.folder import Occupied, Owner
from megatron_trainer.checkpoint.lease import LEASE, Heartbeat
from megatron_trainer.train import output_folder
from megatron_trainjob.exit_codes import ExitCode
from tests.support.ranks.tiny_run import arguments, train, write_data

FIRST = Owner(job_uid="a", attempt=0, job_name="first", token="1")
SECOND = Owner(job_uid="b", attempt=0, job_name="second", token="2")


@pytest.fixture
def other_process():
    """A living process of this machine."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()


def claimed(place, owner, *, pid, host=None, age_s=0.0):
    """The folder as a job left it, or has it, whose process sent its last heartbeat so long ago."""
    assert folder.claim(place, owner)
    path = folder.workshop(place, owner) / LEASE
    heartbeat = Heartbeat(path.parent)
    heartbeat._stopped.set()
    held = json.loads(path.read_text())
    path.write_text(json.dumps({"host": host or held["host"], "pid": pid}))
    os.utime(path, (time.time() - age_s,) * 2)


@pytest.mark.parametrize("adopts", [False, True])
@pytest.mark.parametrize("host", [None, "another-node"])
def test_a_second_job_is_refused_while_the_first_lives(tmp_path, other_process, adopts, host):
    claimed(tmp_path, FIRST, pid=other_process.pid, host=host, age_s=30)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(Occupied, match=r"is in use by attempt 0 of job first \(process \d+ on .*, 3\d s ago\)"):
        folder.claim(tmp_path, SECOND, adopts=adopts)
    assert folder.owner(tmp_path) == FIRST
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("is_dead", ["for a minute", "ended", "a zombie", "gave it back"])
def test_afterwards_it_is_refused_unless_it_adopts_what_is_there(tmp_path, other_process, is_dead):
    claimed(tmp_path, FIRST, pid=other_process.pid, age_s=61 if is_dead == "for a minute" else 0)
    if is_dead == "ended":
        other_process.kill()
        other_process.wait()
    if is_dead == "a zombie":
        other_process.kill()
        os.waitid(os.P_PID, other_process.pid, os.WEXITED | os.WNOWAIT)
    if is_dead == "gave it back":
        (folder.workshop(tmp_path, FIRST) / LEASE).unlink()
    with pytest.raises(Occupied, match=r"the run of another job, first; .*spec.checkpoint.adopt: true"):
        folder.claim(tmp_path, SECOND)
    assert folder.claim(tmp_path, SECOND, adopts=True)
    assert folder.owner(tmp_path) == SECOND


def test_a_job_made_again_under_its_name_goes_on_once_the_first_has_ended(tmp_path, other_process):
    again = Owner(job_uid="c", attempt=0, job_name="first", token="3")
    claimed(tmp_path, FIRST, pid=other_process.pid)
    with pytest.raises(Occupied, match="is in use"):
        folder.claim(tmp_path, again)
    other_process.kill()
    other_process.wait()
    assert folder.claim(tmp_path, again)


def test_of_two_jobs_that_claim_in_the_same_moment_the_loser_hears_of_the_other(tmp_path, monkeypatch):
    def other_is_faster(save, claimant, **_):
        monkeypatch.undo()
        assert folder.claim(save, FIRST)

    monkeypatch.setattr(folder, "_check_free", other_is_faster)
    found = output_folder._take(tmp_path, SECOND, adopts=False)
    assert "was claimed by another job at the same moment" in found
    assert folder.owner(tmp_path) == FIRST


def test_a_newer_attempt_of_the_same_job_waits_for_nothing(tmp_path, other_process):
    claimed(tmp_path, FIRST, pid=other_process.pid, host="another-node")
    assert folder.claim(tmp_path, Owner(job_uid="a", attempt=1, job_name="first", token="3"))


def test_a_heartbeat_renews_its_lease_until_its_workshop_is_taken_away(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "PERIOD_S", 0.01)
    workshop = tmp_path / "workshop"
    workshop.mkdir()
    heartbeat = Heartbeat(workshop)
    os.utime(workshop / LEASE, (0, 0))
    for _ in range(500):
        if (workshop / LEASE).stat().st_mtime > 0:
            break
        time.sleep(0.01)
    assert (workshop / LEASE).stat().st_mtime > 0
    heartbeat.stop()
    assert not (workshop / LEASE).exists()


@pytest.mark.dist
def test_a_folder_of_another_job_and_a_finished_one_with_other_data_are_no_success(llama, tmp_path):
    data = write_data(tmp_path / "train.jsonl")
    given = arguments(llama, data, tmp_path / "run", train_iters=1)
    assert train(given, job_uid="a", job_name="first", resume="Auto").exit_code == 0
    other = train(given, job_uid="b", job_name="second", resume="Auto")
    assert other.exit_code == ExitCode.OUTPUT_NOT_WRITABLE
    assert "the run of another job, first" in other.message
    assert train(given, job_uid="b", job_name="second", resume="Auto", adopts=True).exit_code == 0
    changed = {**given, "dataset": [str(write_data(tmp_path / "other.jsonl", rows=9))]}
    finished = train(changed, job_uid="b", job_name="second", resume="Auto", attempt=1)
    assert finished.exit_code == ExitCode.CHECKPOINT_INCOMPATIBLE
    assert "already has all 1 steps of this run, on different data" in finished.message
    assert train({**changed, "train_iters": 2}, job_uid="b", job_name="second", resume="Auto", attempt=2).exit_code == 0


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_mtj_run_refuses_the_folder_of_another_job_until_it_adopts_it(llama, tmp_path):
    """Two jobs whose volumes are one folder of this machine."""
    given = arguments(llama, write_data(tmp_path / "train.jsonl"), tmp_path)
    given = {name: value for name, value in given.items() if name not in ("save", "add_version")}

    def run(name, steps, **checkpoint):
        shared = {"pvc": {"claimName": "disk"}, "subPath": "run", **checkpoint}
        spec = {"task": "sft", "image": "none", "nprocPerNode": 1, "args": {**given, "train_iters": steps}}
        job = {"apiVersion": "megatrontrain.dev/v1alpha1", "kind": "MegatronTrainJob", "metadata": {"name": name}}
        (tmp_path / "job.yaml").write_text(yaml.safe_dump({**job, "spec": {**spec, "checkpoint": shared}}))
        code = "from megatron_operator.cli import main; raise SystemExit(main())"
        command = [
            sys.executable,
            "-c",
            code,
            "run",
            str(tmp_path / "job.yaml"),
            "--state-dir",
            str(tmp_path / "state"),
        ]
        command += ["--volume", f"disk={tmp_path / 'disk'}"]
        environment = {**os.environ, "MTJ_DEVICE": "cpu", "OMP_NUM_THREADS": "1", "COLUMNS": "500"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
        return done.returncode, done.stdout + done.stderr

    (tmp_path / "disk").mkdir()
    assert run("first", 1)[0] == 0
    code, output = run("second", 2)
    assert code != 0
    assert "has the run of another job, first" in output
    assert run("third", 2, adopt=True)[0] == 0
    lines = map(json.loads, (tmp_path / "disk" / "run" / "logging.jsonl").read_text().splitlines())
    assert [line["iteration"] for line in lines if "lm loss" in line] == [1, 2]
