"""mtj run with the trainer's own launcher, whose ranks are a small program: ranks start again in the living pod."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from megatron_operator.timestamp import to_seconds
from tests.support.operator.local_runs import ROOT, SHORT_GRACE, LocalRun
from tests.support.processes import is_alive, wait_for

LAUNCHER = ROOT / "tests" / "support" / "operator" / "counting_launcher.py"
SPAWN = {"name": "MTJ_RANK_START", "value": "spawn"}


class LaunchedRun(LocalRun):
    """A run whose pods are launchers of one rank each."""

    def write(self, *options, env=(), **spec):
        command = ["python", str(LAUNCHER), "/checkpoints/tune", *map(str, options)]
        return super().write(command=command, env=[SPAWN, *env], **spec)

    def rank_of(self, pod):
        """The process of the pod's rank."""
        launcher = self.process_of(pod)
        children = Path(f"/proc/{launcher}/task/{launcher}/children")
        wait_for(lambda: children.read_text().split())
        return int(children.read_text().split()[0])

    def log(self, pod):
        return (self.state / "logs" / f"{pod}.log").read_text()


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    return LaunchedRun.within(tmp_path, monkeypatch, capsys)


def test_a_killed_rank_starts_again_under_the_same_launchers(run):
    process = run.write("--pause-at", 7, nodes=2).start()
    run.wait_for_pause(nodes=2)
    pods = ("tune-a0-master-0", "tune-a0-worker-0")
    launchers = [run.process_of(pod) for pod in pods]
    os.kill(run.rank_of("tune-a0-worker-0"), signal.SIGKILL)
    wait_for(lambda: run.status["restarts"]["attempt"] == 1)
    wait_for(lambda: "ranksStartedTime" in run.status["lastRestart"])
    assert [run.process_of(pod) for pod in pods] == launchers
    run.go()
    code, output = run.finish(process)
    assert (code, run.steps(0), run.steps(1)) == (0, 20, 20)
    assert run.status["restarts"] == {
        "total": 1,
        "counted": 1,
        "attempt": 1,
        "podAttempt": 0,
        "uncountedInARow": 0,
        "checkpointIteration": 5,
    }
    assert "Pod tune-a0-worker-0 (rank 1) ended with exit code 137: signal 9." in output
    assert "Starting attempt 1 in place." in output
    assert all("attempt 1 node" in run.log(pod) and "starts at 5" in run.log(pod) for pod in pods)
    assert not (run.state / "logs" / "tune-a1-master-0.log").exists()
    last = run.status["lastRestart"]
    assert (last["attempt"], last["inPlace"]) == (1, True)
    moments = [to_seconds(last[f"{phase}Time"]) for phase in ("detected", "decided", "ranksStarted")]
    assert moments == sorted(moments)


@pytest.mark.slow
def test_a_stopped_rank_is_replaced_as_hung(run):
    policy = {"hangTimeoutSeconds": 2}
    process = run.write("--step-s", 0.2, "--steps", 40, failurePolicy=policy, podTemplate=SHORT_GRACE).start()
    wait_for(lambda: (run.state / "status.yaml").exists() and run.status.get("checkpoint"))
    launcher = run.process_of("tune-a0-master-0")
    os.kill(run.rank_of("tune-a0-master-0"), signal.SIGSTOP)
    wait_for(lambda: run.status["restarts"]["attempt"] == 1)
    assert run.process_of("tune-a0-master-0") == launcher
    code, output = run.finish(process)
    assert (code, run.steps(), run.status["restarts"]["podAttempt"]) == (0, 40, 0)
    assert "JobHung" in output


def test_restarts_in_place_count_and_the_last_failure_ends_the_launcher(run):
    code, output = run.write("--fail-at", 3, failurePolicy={"maxRestarts": 2}).finish()
    assert code == 1
    assert (run.status["restarts"]["total"], run.status["restarts"]["podAttempt"]) == (2, 0)
    assert "MaxRestartsExceeded" in output
    assert run.status["lastFailure"]["exitCode"] == 1


def test_what_no_retry_helps_ends_the_launcher_at_once(run):
    code, output = run.write("--fail-at", 3, "--exit-code", 65).finish()
    assert (code, run.status["restarts"]["total"]) == (1, 0)
    assert "NonRetryableExit" in output


def test_without_the_field_a_new_gang_is_made(run):
    run.write("--fail-at", 3, "--once", failurePolicy={"inPlaceRestart": False})
    code, _ = run.finish()
    assert (code, run.status["restarts"].get("podAttempt"), run.status["lastRestart"]["inPlace"]) == (0, None, False)
    assert "attempt 1 node 0" in run.log("tune-a1-master-0")


def test_a_launcher_that_hears_nothing_ends_with_the_code_of_its_rank(run):
    patience = {"name": "MTJ_LAUNCHER_PATIENCE_SECONDS", "value": "1"}
    process = run.write("--pause-at", 7, env=[patience]).start()
    run.wait_for_pause()
    launcher, rank = run.process_of("tune-a0-master-0"), run.rank_of("tune-a0-master-0")
    process.kill()
    process.communicate()
    os.kill(rank, signal.SIGKILL)
    wait_for(lambda: not is_alive(launcher))
    record = json.loads((run.state / "pods" / "tune-a0-master-0" / "termination-log").read_text())
    assert (record["exitCode"], record["reason"]) == (137, "signal 9")


@pytest.mark.slow
def test_a_suspension_while_ranks_wait_for_their_restart(run):
    process = run.write("--pause-at", 2, "--once", failurePolicy={"backoffSeconds": {"initial": 25}}).start()
    run.wait_for_pause()
    launcher = run.process_of("tune-a0-master-0")
    os.kill(run.rank_of("tune-a0-master-0"), signal.SIGKILL)
    wait_for(lambda: run.status["restarts"].get("podAttempt") == 0)
    time.sleep(1)
    assert run.log("tune-a0-master-0").count("starts at") == 1, "the back-off holds in place too"
    process.send_signal(signal.SIGINT)
    assert run.finish(process)[0] == 130
    assert not is_alive(launcher)
    assert (run.status["phase"], run.status["restarts"]["attempt"]) == ("Suspended", 2)
    assert "podAttempt" not in run.status["restarts"]
    assert run.finish()[0] == 0
    assert "attempt 2 node 0 starts at 0" in run.log("tune-a2-master-0")


def test_an_mtj_that_is_killed_during_a_restart_loses_nothing(run):
    process = run.write("--pause-at", 7, "--once", failurePolicy={"backoffSeconds": {"initial": 25}}, nodes=2).start()
    run.wait_for_pause(nodes=2)
    os.kill(run.rank_of("tune-a0-worker-0"), signal.SIGKILL)
    wait_for(lambda: run.status["restarts"]["attempt"] == 1)
    process.kill()
    process.communicate()
    code, _ = run.finish()
    assert (code, run.steps(0), run.steps(1), run.status["restarts"]["counted"]) == (0, 20, 20, 1)


def test_what_an_earlier_pod_of_the_same_name_has_left_is_not_heard(run):
    """As after a machine that failed before the first status was written."""
    failure = {"exitCode": 1, "reason": "ERROR", "rank": 0, "iteration": None, "message": ""}
    run.write()
    folder = run.state / "pods" / "tune-a0-master-0"
    folder.mkdir(parents=True)
    (folder / "launcher-report.json").write_text(
        json.dumps({"attempt": 0, "state": "failed", "failure": failure, "number": 9})
    )
    (folder / "launcher-directive.json").write_text(
        json.dumps({"attempt": 7, "ends": False, "intervalSeconds": 1.0, "number": 1})
    )
    assert run.finish()[0] == 0
    assert (run.status["restarts"]["total"], run.log("tune-a0-master-0").count("starts at")) == (0, 1)
