"""mtj run over processes: how a job ends, restarts and is taken up again, and what its programs are given."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import yaml

from tests.support.operator.local_runs import SHORT_GRACE, LocalRun


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    return LocalRun.within(tmp_path, monkeypatch, capsys)


def test_a_job_runs_to_its_end_and_says_where_everything_lies(run):
    code, output = run.write(nodes=2).finish()
    assert (code, run.steps(0), run.steps(1)) == (0, 20, 20)
    assert run.status["phase"] == "Succeeded"
    for said in ("JobSucceeded", "20 of 20 (100 %)", "adapter: .mtj/tune/volumes/disk"):
        assert said in output
    assert (run.state / "logs" / "tune-a0-worker-0.log").read_text() == "attempt 0 node 1 starts at 0\n"


def test_running_a_finished_job_again_says_so_and_starts_nothing(run):
    run.write().finish()
    before = run.status
    code, output = run.finish()
    assert code == 0
    assert "tune has already finished." in output
    assert run.status == before


def test_a_changed_manifest_of_a_finished_job_says_what_changed_and_runs_when_asked(run):
    run.write().finish()
    run.write("--steps", 30)
    for _ in range(2):
        code, output = run.finish()
        assert (code, run.steps(0)) == (1, 20)
        assert "has finished with a different manifest; nothing was run." in output
        assert "spec.command: [" in output
        assert '"30"]' in output
        assert "mtj run job.yaml --again" in output
    code, output = run.finish(again=True)
    assert (code, run.steps(0), run.status["phase"]) == (0, 30, "Succeeded")
    assert "starts at 20" in (run.state / "logs" / "tune-a1-master-0.log").read_text()


def test_a_pod_killed_with_9_restarts_the_gang_from_its_checkpoint(run):
    process = run.write("--pause-at", 7, "--once", nodes=2).start()
    run.wait_for_pause(nodes=2)
    os.kill(run.process_of("tune-a0-worker-0"), signal.SIGKILL)
    code, output = run.finish(process)
    assert (code, run.steps(0), run.steps(1)) == (0, 20, 20)
    assert "Pod tune-a0-worker-0 ended with exit code 137: signal 9." in output
    assert run.status["restarts"] == {
        "total": 1,
        "counted": 1,
        "attempt": 1,
        "uncountedInARow": 0,
        "checkpointIteration": 5,
    }
    assert "starts at 5" in (run.state / "logs" / "tune-a1-worker-0.log").read_text()


def test_a_hanging_gang_is_started_again(run):
    run.write("--hang-at", 7, "--once", failurePolicy={"hangTimeoutSeconds": 1}, podTemplate=SHORT_GRACE)
    code, output = run.finish()
    assert (code, run.steps()) == (0, 20)
    assert "JobHung" in output


def test_a_job_that_fails_too_often_ends_with_code_1_and_names_its_log(run):
    run.write("--fail-at", 3, "--exit-code", 1, failurePolicy={"maxRestarts": 1})
    code, output = run.finish()
    assert code == 1
    assert run.status["restarts"]["total"] == 1
    assert run.status["lastFailure"]["message"] == "step 3"
    assert "MaxRestartsExceeded" in output
    assert "log: .mtj/tune/logs/tune-a1-master-0.log" in output


def test_bad_data_fails_at_once(run):
    code, output = run.write("--fail-at", 3, "--exit-code", 65).finish()
    assert (code, run.status["restarts"]["total"]) == (1, 0)
    assert "NonRetryableExit" in output


def test_a_failed_job_is_taken_up_again_from_its_checkpoint(run):
    run.write("--fail-at", 8, "--exit-code", 65).finish()
    code, output = run.write().finish()
    assert (code, run.steps(), run.status["phase"]) == (0, 20, "Succeeded")
    assert "starts at 5" in (run.state / "logs" / "tune-a1-master-0.log").read_text()
    assert "Failed" not in [each["type"] for each in run.status["conditions"]]


def test_the_deadline_of_a_job_holds(run):
    run.write("--pause-at", 3, runPolicy={"activeDeadlineSeconds": 1})
    code, output = run.finish()
    assert code == 1
    assert "DeadlineExceeded" in output


def test_a_suspended_manifest_starts_nothing(run):
    code, _ = run.write(suspend=True).finish()
    assert (code, run.status["phase"]) == (0, "Suspended")
    assert not (run.state / "pods").exists()


def test_initializers_run_before_the_trainer_and_only_once(run):
    fetch = {
        "name": "data",
        "storageUri": "x://y",
        "targetPath": "/checkpoints/data",
        "command": ["sh", "-c", "echo fetched >> /checkpoints/data/log; echo $STORAGE_URI"],
    }
    code, _ = run.write("--fail-at", 7, "--once", nodes=2, initializers=[fetch]).finish()
    assert code == 0
    assert (run.state / "volumes" / "disk" / "data" / "log").read_text() == "fetched\n"
    assert "x://y" in (run.state / "logs" / "tune-a0-master-0.log").read_text()


def test_a_failing_initializer_is_the_failure(run):
    fetch = {"name": "data", "targetPath": "/checkpoints/data", "command": ["sh", "-c", "echo no such bucket; exit 66"]}
    code, _ = run.write(initializers=[fetch]).finish()
    assert code == 1
    assert (run.status["lastFailure"]["exitCode"], run.status["lastFailure"]["message"]) == (66, "no such bucket\n")


def test_a_command_that_cannot_be_started_is_the_failure(run):
    code, output = run.write(command=["/no/such/program"], failurePolicy={"maxRestarts": 0}).finish()
    assert code == 1
    assert "cannot start /no/such/program" in output


def test_arguments_reach_the_program_with_the_paths_of_this_machine(run):
    run.write(command=["cp", "/etc/megatron/args.yaml", "/checkpoints/seen.yaml"])
    assert run.finish()[0] == 0
    seen = yaml.safe_load((run.state / "volumes" / "disk" / "seen.yaml").read_text())
    assert seen == {
        "add_version": False,
        "dataset": ["./train.jsonl"],
        "model": "./model",
        "save": str(run.state / "volumes" / "disk" / "tune"),
        "train_iters": 20,
    }


def test_the_environment_is_that_of_a_pod_on_this_machine(run):
    run.write(command=["sh", "-c", "env > /checkpoints/env-$NODE_RANK"], nodes=2)
    assert run.finish()[0] == 0
    folder = run.state / "volumes" / "disk"
    lines = [(folder / f"env-{rank}").read_text().splitlines() for rank in (0, 1)]
    found = [dict(line.split("=", 1) for line in each if "=" in line) for each in lines]
    assert [each["NODE_RANK"] for each in found] == ["0", "1"]
    assert {each["MASTER_ADDR"] for each in found} == {"127.0.0.1"}
    assert found[0]["MASTER_PORT"] == found[1]["MASTER_PORT"] != "29500"
    assert found[0]["MTJ_PROGRESS_FILE"] == str(run.state / "progress.json")


ODD_RECORDS = {
    "a log line in JSON": ('{"level": "error", "message": {"text": "CUDA error"}}', "[" * 2000),
    "a record with odd fields": (
        '{"reason": "ERROR", "message": 7, "iteration": 1e400}',
        '{"phase": "training", "iteration": "x"}',
    ),
    "half a character": (
        '{"reason": "ERROR", "message": "\\ud800\\u001b[2J"}',
        '{"phase": "training", "iteration": 1e999}',
    ),
    "a giant integer": (
        '{"reason": "ERROR", "iteration": ' + "9" * 3000 + "}",
        '{"phase": "training", "iteration": ' + "9" * 3000 + "}",
    ),
}


@pytest.mark.parametrize(("message", "progress"), ODD_RECORDS.values(), ids=ODD_RECORDS)
def test_whatever_a_program_leaves_as_its_last_words_the_job_fails_with_them(run, message, progress):
    code = (
        "import os, sys, time; open(os.environ['MTJ_PROGRESS_FILE'], 'w').write(sys.argv[2]); time.sleep(0.5);"
        "open(os.environ['MTJ_TERMINATION_LOG'], 'w').write(sys.argv[1]); sys.exit(3)"
    )
    run.write(command=["python", "-c", code, message, progress], failurePolicy={"maxRestarts": 0})
    ended, output = run.finish()
    assert (ended, run.status["phase"]) == (1, "Failed")
    assert run.status["lastFailure"]["exitCode"] == 3
    assert "Traceback" not in output


def test_the_port_where_ranks_meet_is_held_while_they_start(run):
    """The program ends well only if no one can take the port that it was told."""
    program = (
        "import os, socket\n"
        "try:\n socket.socket().bind(('127.0.0.1', int(os.environ['MASTER_PORT'])))\n"
        "except OSError:\n raise SystemExit(0)\n"
        "raise SystemExit(64)"
    )
    code, output = run.write(command=["python", "-c", program]).finish()
    assert code == 0, output


@pytest.mark.parametrize("code", [0, pytest.param(65, marks=pytest.mark.slow)])
def test_memory_for_checkpoints_is_of_each_node_and_given_back_when_the_run_ends(run, code):
    words = 'cd /checkpoints; echo "$MTJ_MEMORY_CHECKPOINT_FOLDER" > $NODE_RANK; touch "$(cat $NODE_RANK)/x"'
    memory = {"intervalIterations": 5, "sizeLimit": "1Gi"}
    checkpoint = {"pvc": {"claimName": "disk"}, "memory": memory}
    run.write(nodes=2, command=["sh", "-c", f"{words} && exit {code}"], checkpoint=checkpoint)
    assert run.finish()[0] == (1 if code else 0)
    folders = [Path((run.state / "volumes" / "disk" / str(node)).read_text().strip()) for node in range(2)]
    assert [folder.name for folder in folders] == ["node-0", "node-1"]
    assert not folders[0].parent.exists()
