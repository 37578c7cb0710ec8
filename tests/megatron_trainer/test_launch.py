"""The launcher's answer when ranks fail, are killed, or are asked to stop; the ranks are small real processes."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from megatron_trainer import environment, gpu_errors
from megatron_trainer.process import container, operator_line
from megatron_trainjob import launcher, termination
from megatron_trainjob.exit_codes import ExitCode
from megatron_trainjob.launcher import LauncherReport
from megatron_trainjob.termination import TerminationRecord
from tests.support.processes import is_alive, wait_for

LAUNCHER = """
import sys
from megatron_trainer.process import launch, ranks
ranks.RANK_COMMAND = [sys.executable, {program!r}]
launch.LINGER_S, launch.LINGER_AFTER_CAUSE_S = {lingers}
launch.STACKS_AFTER_S = 0.3
sys.exit(launch.main(["sft"]))
"""


@pytest.fixture
def start(tmp_path):
    """Starts a launcher of two ranks that run the given program; returns its process and the termination log."""

    def start_launcher(program: str, lingers: tuple[float, float] = (0.5, 0.5)) -> tuple[subprocess.Popen, Path]:
        script = tmp_path / "rank.py"
        script.write_text("import json, os, sys, time, signal\nrank = int(os.environ['RANK'])\n" + program)
        log = tmp_path / "termination-log"
        env = {
            **os.environ,
            "NPROC_PER_NODE": "2",
            "NNODES": "2",
            "NODE_RANK": "1",
            "MTJ_TERMINATION_LOG": str(log),
            "MTJ_RANK_START": "spawn",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER.format(program=str(script), lingers=lingers)],
            env=env,
            stderr=(tmp_path / "stderr").open("wb"),
        )
        return process, log

    return start_launcher


def test_all_ranks_end_well(start):
    process, log = start("")
    assert process.wait(20) == 0
    assert not log.exists()


def test_a_rank_that_aborts_leaves_the_place_where_it_stood(start):
    process, log = start(
        "from pathlib import Path\n"
        "from megatron_trainer import stacks\n"
        "stacks.listen(Path(os.environ['MTJ_FAILURE_FILE']), rank)\n"
        "def all_reduce():\n    os.abort()\n"
        "if rank == 3:\n    all_reduce()\n"
        "time.sleep(30)\n"
    )
    assert process.wait(60) == 134
    record = json.loads(log.read_text())
    assert (record["exitCode"], record["reason"], record["rank"]) == (134, "signal 6", 3)
    assert record["stack"].startswith("all_reduce (")
    assert record["host"]


def test_the_rank_that_explains_itself_gives_the_pod_its_code_and_message(start):
    record = {"exitCode": 65, "reason": "BAD_DATA", "rank": 3, "iteration": 0, "message": "row 7"}
    process, log = start(
        f"if rank == 3:\n open(os.environ['MTJ_FAILURE_FILE'], 'w').write({json.dumps(record)!r}); sys.exit(65)\n"
        "time.sleep(60)"
    )
    assert process.wait(20) == ExitCode.BAD_DATA
    assert json.loads(log.read_text()) == record


def test_a_killed_rank_is_reported_as_its_signal(start):
    process, log = start("if rank == 2:\n os.kill(os.getpid(), 9)\ntime.sleep(60)")
    assert process.wait(20) == 128 + signal.SIGKILL
    record = json.loads(log.read_text())
    assert (record["reason"], record["rank"]) == ("signal 9", 2)
    assert record["iteration"] is None, "no one could say; a number would stand before that of the last progress"


def test_the_others_of_a_killed_rank_are_not_waited_for(start):
    process, _ = start("if rank == 2:\n os.kill(os.getpid(), 9)\ntime.sleep(60)", lingers=(60.0, 0.2))
    assert process.wait(20) == 128 + signal.SIGKILL


def test_after_an_error_without_a_cause_the_others_may_still_name_it(start):
    record = {"exitCode": 65, "reason": "BAD_DATA", "rank": 2, "iteration": 0, "message": "row 7"}
    process, log = start(
        "if rank == 3:\n sys.exit(1)\n"
        f"time.sleep(2); open(os.environ['MTJ_FAILURE_FILE'], 'w').write({json.dumps(record)!r}); sys.exit(65)",
        lingers=(60.0, 0.1),
    )
    assert process.wait(20) == ExitCode.BAD_DATA
    assert json.loads(log.read_text()) == record


@pytest.mark.parametrize("is_first", [True, False], ids=["and is seen first", "and is seen last"])
def test_the_rank_that_failed_goes_before_one_that_lost_it(start, is_first):
    """Rank 2 lost its peer, rank 3; both leave a record, as the program of a rank does for every error."""
    lost = {"exitCode": 1, "reason": "ERROR", "rank": 2, "iteration": 0}
    lost["message"] = "RuntimeError: [pair.cc:547] Connection closed by peer [127.0.0.1]:4711"
    failed = {"exitCode": 1, "reason": "ERROR", "rank": 3, "iteration": 0, "message": "ValueError: row 7"}
    process, log = start(
        f"time.sleep(1.0 if (rank == 3) == {is_first} else 0)\n"
        f"record = {json.dumps(lost)!r} if rank == 2 else {json.dumps(failed)!r}\n"
        "open(os.environ['MTJ_FAILURE_FILE'], 'w').write(record); sys.exit(1)",
        lingers=(60.0, 0.1),
    )
    assert process.wait(20) == ExitCode.ERROR
    assert json.loads(log.read_text()) == failed


def test_termination_reaches_every_rank_and_their_code_comes_back(start, tmp_path):
    process, _ = start(
        "def stop(*_): sys.exit(143)\n"
        f"signal.signal(signal.SIGTERM, stop); open({str(tmp_path)!r} + f'/ready-{{rank}}', 'w')\ntime.sleep(60)"
    )
    wait_for(lambda: len(list(tmp_path.glob("ready-*"))) == 2)
    process.terminate()
    assert process.wait(20) == ExitCode.PREEMPTED


def test_a_rank_that_does_not_end_when_asked_writes_where_it_is(start, tmp_path):
    program = (
        "from pathlib import Path\n"
        "from megatron_trainer import stacks\n"
        "stacks.listen(None, rank)\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "def all_reduce():\n"
        "    while (folder / 'stderr').read_text().count(' in all_reduce') < 2:\n        time.sleep(0.05)\n"
        "(folder / f'ready-{rank}').touch()\n"
        "all_reduce()\n"
    )
    process, _ = start(program)
    wait_for(lambda: all((tmp_path / f"ready-{rank}").exists() for rank in (2, 3)))
    process.terminate()
    assert process.wait(20) == 0
    assert (tmp_path / "stderr").read_text().count(" in all_reduce") == 2, "once for each of the two ranks"


def test_ranks_die_with_a_killed_launcher(start, tmp_path):
    process, _ = start(f"open({str(tmp_path)!r} + f'/pid-{{rank}}', 'w').write(str(os.getpid()))\ntime.sleep(60)")
    wait_for(lambda: all((tmp_path / f"pid-{r}").exists() and (tmp_path / f"pid-{r}").read_text() for r in (2, 3)))
    process.kill()
    process.wait(20)
    for rank in (2, 3):
        pid = int((tmp_path / f"pid-{rank}").read_text())
        wait_for(lambda pid=pid: not is_alive(pid))


def test_a_container_that_starts_again_trains_nothing_by_itself(start, tmp_path, monkeypatch):
    """Without an operator to ask it ends, with a code after which the kubelet does not start it once more."""
    monkeypatch.setenv("MTJ_ATTEMPT_FILE", str(tmp_path / "attempt"))
    program = (
        f"open({str(tmp_path / 'started')!r}, 'a').write('x')\nif rank == 3: os.kill(os.getpid(), 9)\ntime.sleep(30)"
    )
    process, log = start(program)
    assert process.wait(60) == 201, "a rank was killed"
    assert json.loads(log.read_text())["exitCode"] == 137
    assert (tmp_path / "attempt").read_text() == "0"
    trained = (tmp_path / "started").read_text()
    process, log = start(program)
    assert process.wait(60) == 201
    assert json.loads(log.read_text())["reason"] == "CONTAINER_ENDED"
    assert (tmp_path / "started").read_text() == trained
    assert (tmp_path / "attempt.containers").read_text() == "2"


def test_a_container_that_starts_again_where_no_operator_ever_answered_does_not_wait_for_one(
    start, tmp_path, monkeypatch
):
    """As behind a network policy: its patience, a thousand seconds here, is for an operator that comes back."""
    monkeypatch.setenv("MTJ_ATTEMPT_FILE", str(tmp_path / "attempt"))
    monkeypatch.setenv("MTJ_LAUNCHER_URL", "http://127.0.0.1:9/launcher")
    monkeypatch.setenv("MTJ_LAUNCHER_PATIENCE_SECONDS", "1000")
    (tmp_path / "attempt").write_text("4")
    process, log = start("open(os.environ['MTJ_TERMINATION_LOG'] + '.trained', 'w')")
    assert process.wait(100) == 201
    assert json.loads(log.read_text())["reason"] == "CONTAINER_ENDED"
    assert not Path(f"{log}.trained").exists()


def test_the_count_of_containers_survives_a_full_volume(tmp_path):
    """A container may end in the midst of it too: the next launcher has to read a number."""
    env = environment.read({"MTJ_ATTEMPT_FILE": str(tmp_path / "attempt")})
    assert [container.count(env), container.count(env)] == [0, 1]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        with pytest.raises(OSError, match="File too large"):
            container.count(env)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert container.count(env) == 2


def test_a_launcher_asked_to_end_while_a_directive_ends_its_ranks_was_stopped_and_did_not_fail(
    start, tmp_path, monkeypatch
):
    """The signal comes right between the directive and the ranks' end: when they are asked for their stacks."""
    monkeypatch.setenv("MTJ_LAUNCHER_FOLDER", str(tmp_path))
    process, log = start(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "signal.signal(signal.SIGUSR2, lambda *_: os.kill(os.getppid(), signal.SIGTERM))\n"
        f"open(f'{tmp_path}/ready-{{rank}}', 'w')\ntime.sleep(60)"
    )
    until = time.monotonic() + 30
    while process.poll() is None:
        assert time.monotonic() < until
        answer(tmp_path, attempt=1 if len(list(tmp_path.glob("ready-*"))) == 2 else 0)
        time.sleep(0.02)
    assert process.poll() == ExitCode.PREEMPTED
    assert json.loads(log.read_text())["reason"] == "PREEMPTED"


def answer(folder: Path, attempt: int) -> None:
    """What an operator on this machine answers to the launcher's present report."""
    report = folder / launcher.REPORT_FILE
    if report.exists():
        number = json.loads(report.read_text())["number"]
        aside = folder / "directive.tmp"
        aside.write_text(json.dumps({"attempt": attempt, "intervalSeconds": 0.1, "number": number}))
        aside.replace(folder / launcher.DIRECTIVE_FILE)


class Heard:
    """A channel whose operator has nothing to say."""

    def __init__(self) -> None:
        self.reports = []

    def exchange(self, report):
        self.reports.append(report)
        return launcher.Directive(attempt=report.attempt, interval_s=0.05)


def test_the_newest_checkpoint_in_memory_is_reported_and_none_of_an_earlier_run(tmp_path):
    earlier = tmp_path / "run" / "iter_0000900"
    earlier.mkdir(parents=True)
    os.utime(earlier, (0, 0))
    channel = Heard()
    line = operator_line.OperatorLine(
        channel, tmp_path / "stages", LauncherReport(attempt=0, state="running"), 10.0, lambda: None, tmp_path
    )
    threading.Thread(target=line.run, daemon=True).start()
    try:
        wait_for(lambda: channel.reports)
        assert channel.reports[-1].memory_iteration is None
        for name in ("iter_0000005", "iter_0000010", ".launch-1"):
            made = tmp_path / "run" / name
            made.mkdir()
            os.utime(made, (1, 1))  # a file system's clock may be behind ours
        wait_for(lambda: channel.reports[-1].memory_iteration is not None)
        wait_for(lambda: channel.reports[-1].memory_iteration == 10)
    finally:
        line.close()


def test_without_gpus_nothing_is_known_of_their_errors():
    with gpu_errors.listening(has_gpus=False) as since:
        assert since(0.0) == ""


def test_a_long_failure_message_is_cut_and_read_back(tmp_path):
    record = TerminationRecord(exit_code=1, reason="ERROR", rank=0, iteration=3, message="x" * 5000)
    path = tmp_path / "failure.json"
    termination.write(path, record)
    assert termination.read(path).message == "x" * 1024
    assert termination.read(tmp_path / "missing.json") is None
