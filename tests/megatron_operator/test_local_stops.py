"""mtj run that is interrupted, killed, started twice or kept from writing: its pods end, and the next run goes on."""

from __future__ import annotations

import os
import signal
import time

import pytest

from megatron_operator.cli import main
from tests.support.operator.local_runs import LocalRun
from tests.support.processes import is_alive, wait_for


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """A hang-up ends what is started here, also where the tests themselves run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield LocalRun.within(tmp_path, monkeypatch, capsys)
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        signal.SIGTERM,
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
    ids=["ctrl-c", "term", "hang-up"],
)
def test_an_interruption_saves_and_the_next_run_goes_on(run, number):
    process = run.write("--pause-at", 7, "--once", nodes=2).start()
    run.wait_for_pause(nodes=2)
    pids = [run.process_of(f"tune-a0-{name}-0") for name in ("master", "worker")]
    process.send_signal(number)
    code, output = run.finish(process)
    assert code == 128 + number
    assert "run the same command to continue from the newest checkpoint" in output
    assert not any(is_alive(pid) for pid in pids)
    assert (run.steps(0), run.steps(1)) == (7, 7)
    assert run.status["phase"] == "Suspended"
    assert (run.status["progress"]["iteration"], run.status["checkpoint"]["latestIteration"]) == (7, 7)
    code, output = run.finish()
    assert (code, run.steps()) == (0, 20)
    assert "JobResumed" in output
    assert "starts at 7" in (run.state / "logs" / "tune-a1-master-0.log").read_text()


def test_a_second_interruption_does_not_wait(run):
    process = run.write("--hang-at", 3).start()
    run.wait_for_pause()
    pid = run.process_of("tune-a0-master-0")
    process.send_signal(signal.SIGINT)
    wait_for(lambda: run.status["phase"] == "Suspended")
    process.send_signal(signal.SIGINT)
    code, _ = run.finish(process)
    assert code == 130
    assert not is_alive(pid)


@pytest.mark.slow
def test_a_hang_up_is_no_second_interruption_and_none_at_all_under_nohup(run):
    process = run.write("--pause-at", 7, "--once").start()
    run.wait_for_pause()
    for number in (signal.SIGHUP, signal.SIGHUP):
        process.send_signal(number)
        time.sleep(0.05)
    code, _ = run.finish(process)
    assert (code, run.steps(), run.status["phase"]) == (128 + signal.SIGHUP, 7, "Suspended")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a child inherits it
    try:
        process = run.write().start()
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_for(lambda: run.status["phase"] != "Suspended")
    process.send_signal(signal.SIGHUP)
    code, _ = run.finish(process)
    assert (code, run.steps()) == (0, 20)


def test_a_state_that_cannot_be_written_ends_every_process_after_it_has_saved(run):
    process = run.write("--pause-at", 7, "--once").start()
    run.wait_for_pause()
    pid = run.process_of("tune-a0-master-0")
    (run.state / "status.yaml").rename(run.state / "earlier.yaml")
    (run.state / "status.yaml").mkdir()
    process.send_signal(signal.SIGTERM)  # whatever is written next
    code, output = run.finish(process)
    assert code == 1
    assert "cannot write the job's state to .mtj/tune" in output
    assert "Traceback" not in output
    assert not is_alive(pid)
    assert run.steps() == 7


@pytest.mark.slow
def test_no_process_outlives_a_state_of_which_nothing_can_be_written(run):
    grace = {"spec": {"terminationGracePeriodSeconds": 2}}
    process = run.write("--pause-at", 7, "--once", nodes=2, podTemplate=grace).start()
    run.wait_for_pause(2)
    pids = [run.process_of(pod) for pod in ("tune-a0-master-0", "tune-a0-worker-0")]
    os.kill(pids[1], signal.SIGSTOP)  # it outlives its master, until it is killed
    for path in (run.state / "status.yaml", *(run.state / "pods").glob("*/process.json")):
        path.rename(path.with_suffix(".earlier"))
        path.mkdir()
    process.send_signal(signal.SIGTERM)
    code, output = run.finish(process)
    assert (code, [pid for pid in pids if is_alive(pid)]) == (1, []), output


@pytest.mark.parametrize("place", ["a-file", "a-file/below"])
def test_a_state_folder_that_cannot_be_made_is_said(run, capsys, place):
    run.write()
    (run.folder / "a-file").write_text("")
    assert main(["run", "job.yaml", "--state-dir", place]) == 1
    assert f"cannot write the job's state to {place}/tune" in "".join(capsys.readouterr()).replace("\n", "")


def test_two_runs_of_one_job_do_not_fight(run):
    process = run.write("--pause-at", 3).start()
    run.wait_for_pause()
    code, output = run.finish()
    assert code == 1
    assert f"process {process.pid} is already running this job" in output
    run.go()
    assert run.finish(process)[0] == 0


def test_pods_that_outlive_a_killed_mtj_are_stopped_before_the_next_attempt(run):
    process = run.write("--pause-at", 7, "--once").start()
    run.wait_for_pause()
    pid = run.process_of("tune-a0-master-0")
    process.kill()
    process.communicate()
    assert is_alive(pid)
    code, output = run.finish()
    assert (code, run.steps()) == (0, 20)
    assert not is_alive(pid)
    assert run.status["restarts"]["counted"] == 0
    assert "starts at 7" in (run.state / "logs" / "tune-a1-master-0.log").read_text()


@pytest.mark.slow
def test_a_killed_mtj_whose_pods_have_ended_goes_on(run):
    process = run.write("--pause-at", 7, "--once").start()
    run.wait_for_pause()
    pid = run.process_of("tune-a0-master-0")
    process.kill()
    os.kill(pid, signal.SIGKILL)
    process.communicate()
    code, _ = run.finish()
    assert (code, run.steps(), run.status["restarts"]["counted"]) == (0, 20, 0)
