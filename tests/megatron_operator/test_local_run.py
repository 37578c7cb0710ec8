"""mtj run over processes: the real command, and a small program in place of the trainer.

The program counts steps, saves every fifth and continues from there. Where a signal is sent, `mtj run` is a process of
its own, and the program pauses so that the signal meets it at a known step.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from megatron_operator.cli import main
from tests.support.operator.job_values import raw, write_model_header, write_tokenizer

TESTS = Path(__file__).parent.parent
PROGRAM = TESTS / "support" / "checkpoint" / "counting_program.py"
PATIENCE_S = 60
MODEL = {"model_type": "llama", "num_hidden_layers": 2}
SHORT_GRACE = {"spec": {"terminationGracePeriodSeconds": 0}}


class Run:
    """One `mtj run` in a folder of its own."""

    def __init__(self, folder, capsys):
        self.folder, self.capsys = folder, capsys
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text(json.dumps(MODEL))
        write_model_header(folder / "model", MODEL)
        write_tokenizer(folder / "model")
        (folder / "train.jsonl").write_text("")
        self.state = folder / ".mtj" / "tune"

    def write(self, *options, nodes=1, **spec):
        """The manifest of a job whose containers run the program with these options."""
        arguments = {"model": "./model", "dataset": ["./train.jsonl"], "train_iters": 20}
        manifest = raw(
            {
                "args": arguments,
                "numNodes": nodes,
                "command": ["python", str(PROGRAM), "/checkpoints/tune", *map(str, options)],
                "failurePolicy": {"backoffSeconds": {"initial": 0}, **spec.pop("failurePolicy", {})},
                "checkpoint": {"pvc": {"claimName": "disk"}, "onTermination": {"gracePeriodSeconds": 5}},
                **spec,
            }
        )
        for given_by_a_server in ("uid", "generation"):
            del manifest["metadata"][given_by_a_server]
        (self.folder / "job.yaml").write_text(yaml.safe_dump(manifest))
        return self

    def start(self):
        paths = [str(TESTS.parent / part) for part in ("operator", "trainer")]
        code = "import sys; from megatron_operator.cli import main; sys.exit(main(['run', 'job.yaml']))"
        return subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "200"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, process=None, *, again=False):
        """(exit code, output) of a started process, or of a run in this one."""
        if process is None:
            self.capsys.readouterr()
            code = main(["run", "job.yaml", *(["--again"] if again else [])])
            return code, "".join(self.capsys.readouterr())
        output, _ = process.communicate(timeout=PATIENCE_S)
        return process.returncode, output

    def go(self):
        """Lets a pausing program go on."""
        (self.state / "volumes" / "disk" / "tune" / "go").touch()

    @property
    def status(self):
        return yaml.safe_load((self.state / "status.yaml").read_text())

    def steps(self, rank=0):
        return int((self.state / "volumes" / "disk" / "tune" / f"checkpoint-{rank}").read_text())

    def process_of(self, pod):
        return json.loads((self.state / "pods" / pod / "process.json").read_text())["identity"]["pid"]

    def wait_for_pause(self, nodes=1):
        """Until every pod stalls at its step, and mtj has written down that the gang is complete."""
        folder = self.state / "volumes" / "disk" / "tune"
        wait(lambda: all((folder / f"paused-{rank}").exists() for rank in range(nodes)))
        wait(lambda: (self.state / "status.yaml").exists() and self.status["phase"] == "Running")


def wait(is_true):
    deadline = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def is_alive(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return Run(tmp_path, capsys)


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
    wait(lambda: run.status["phase"] == "Suspended")
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
    wait(lambda: run.status["phase"] != "Suspended")
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
