"""What a rank leaves of itself when a signal ends it, and what it answers to SIGUSR2."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest

from megatron_trainjob import termination
from megatron_trainjob.termination import MAX_STACK_CHARACTERS, TerminationRecord

PROGRAM = """
import os, signal, sys, threading, time
from pathlib import Path
from megatron_trainer import stacks

def beside():
    time.sleep(60)

def inner():
    if sys.argv[2] == "hang":
        with stacks.written_after(0.1):
            time.sleep(0.5)
        with stacks.written_after(60):
            return
    if sys.argv[2] == "wait":
        print("ready", flush=True)
        time.sleep(60)
    os.kill(os.getpid(), int(sys.argv[2]))
    time.sleep(60)

def outer():
    inner()

stacks.listen(Path(sys.argv[1]), 3)
threading.Thread(target=beside, daemon=True).start()
outer()
"""


@pytest.fixture
def start(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    def run(what):
        command = [sys.executable, str(program), str(tmp_path / "rank-3.json"), what]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return run


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL])
def test_a_fatal_signal_leaves_the_place_in_the_program(start, tmp_path, number):
    process = start(str(int(number)))
    process.communicate(timeout=60)
    assert process.returncode == -number
    record = termination.read(tmp_path / "rank-3.json")
    assert (record.exit_code, record.reason, record.rank) == (128 + number, f"signal {number}", 3)
    assert record.message.startswith("Fatal Python error: ")
    assert re.match(r"inner \(\S+/program\.py:\d+\) < outer \(", record.stack)
    assert record.host


def test_the_stacks_of_all_threads_are_written_on_a_signal_and_the_process_goes_on(start, tmp_path):
    process = start("wait")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGUSR2)
    time.sleep(0.5)
    assert process.poll() is None
    process.kill()
    _, text = process.communicate(timeout=60)
    assert " in inner" in text
    assert " in beside" in text
    assert termination.read(tmp_path / "rank-3.json") is None, "SIGKILL leaves no word"


def test_a_step_that_hangs_leaves_its_stacks_in_the_log_once(start):
    process = start("hang")
    _, text = process.communicate(timeout=60)
    assert process.returncode == 0
    assert text.count(" in inner") == 1


def test_a_record_carries_host_and_stack_within_bounds(tmp_path):
    record = TerminationRecord(
        exit_code=1, reason="ERROR", rank=0, iteration=4, message="m", host="h", stack="f (a/b.py:1) < " * 200
    )
    fields = json.loads(record.to_json())
    assert len(fields["stack"]) <= MAX_STACK_CHARACTERS
    assert fields["host"] == "h"
    (tmp_path / "record.json").write_text(record.to_json())
    assert termination.read(tmp_path / "record.json").stack == fields["stack"]
    without = TerminationRecord(exit_code=1, reason="ERROR", rank=0, iteration=None, message="m")
    assert {"host", "stack"}.isdisjoint(json.loads(without.to_json()))
