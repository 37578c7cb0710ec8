"""Ranks that are forked: their codes, signals and environment, and what happens when forking is refused or killed.

The server here imports numpy alone; the real one, with real training, is in test_recovery.py.
"""

import errno
import logging
import os
import signal
import sys
from pathlib import Path

import pytest

from megatron_trainer.process import ranks
from tests.support.processes import wait_for

SERVER = """
import os, signal, sys, time
import numpy
from megatron_trainer.process import fork_server
fork_server._import_everything = lambda: None
fork_server.why_not_fork = lambda backend: {refusal!r}
fork_server.die_with_parent = lambda known=fork_server.die_with_parent: (time.sleep({slow_s}), known())
request = fork_server.main(int(sys.argv[1]))
if request is not None:
    exec(request["argv"][0])
"""


@pytest.fixture
def starter(tmp_path, monkeypatch):
    """Makes the function that returns the present way to start ranks; closed at the end."""
    opened = []

    def make(refusal="", how="fork", slow_s=0.0):
        script = tmp_path / "server.py"
        script.write_text(SERVER.format(refusal=refusal, slow_s=slow_s))
        monkeypatch.setattr(ranks, "SERVER_COMMAND", [sys.executable, str(script)])
        monkeypatch.setattr(ranks, "RANK_COMMAND", [sys.executable, "-c"])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        context = ranks.starting(how, ["work"], environment, lambda: False)
        current = context.__enter__()
        opened.append(context)
        return current

    yield make
    for context in opened:
        context.__exit__(None, None, None)


def end_of(process):
    wait_for(lambda: process.poll() is not None)
    return process.poll()


def test_a_forked_rank_has_its_environment_and_its_code_comes_back(starter):
    start = starter()().start
    codes = [start([f"sys.exit(int(os.environ['RANK']) + {base})"], {"RANK": "2"}) for base in (5, 6)]
    assert [end_of(rank) for rank in codes] == [7, 8]
    assert end_of(start(["sys.exit('HOME' in os.environ)"], {"RANK": "0"})) == 0


def test_a_process_out_of_memory_is_a_rank_rather_than_the_one_that_forks_them(starter, tmp_path):
    program = f"open({str(tmp_path / 'score')!r}, 'w').write(open('/proc/self/oom_score_adj').read())"
    assert end_of(starter()().start([program], dict(os.environ))) == 0
    own = int(Path("/proc/self/oom_score_adj").read_text())
    assert own < int((tmp_path / "score").read_text()) <= 1000


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_signal_reaches_a_forked_rank_and_shows_in_its_code(starter, tmp_path, number):
    ready = tmp_path / "ready"
    rank = starter()().start([f"open({str(ready)!r}, 'w'); time.sleep(60)"], {})
    wait_for(ready.exists)
    rank.send_signal(number)
    expected = 1 if number == signal.SIGINT else -number  # Python ends itself with a traceback on SIGINT
    assert end_of(rank) in (expected, -number)
    rank.send_signal(number)


def test_a_rank_that_is_asked_to_end_while_it_is_forked_hears_it(starter):
    rank = starter(slow_s=0.3)().start(["time.sleep(60)"], {})
    rank.send_signal(signal.SIGTERM)
    assert end_of(rank) == -signal.SIGTERM


def test_ranks_are_spawned_with_a_log_line_where_forking_is_refused(starter, caplog):
    current = starter(refusal="an import has started the thread pool")
    with caplog.at_level(logging.WARNING):
        assert isinstance(current(), ranks.Spawn)
    assert "an import has started the thread pool" in caplog.text
    assert end_of(current().start(["import sys; sys.exit(9)"], dict(os.environ))) == 9


def test_ranks_are_spawned_where_processes_have_no_descriptors(starter, monkeypatch, caplog):
    def refuse(pid):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    with caplog.at_level(logging.WARNING):
        assert isinstance(starter()(), ranks.Spawn)
    assert "Function not implemented" in caplog.text


def test_the_end_of_a_rank_is_seen_though_the_server_hangs(starter, monkeypatch):
    monkeypatch.setattr(ranks, "MAX_WORD_S", 0.2)
    server = starter()()
    dies, lives = (server.start(["time.sleep(60)"], {}) for _ in range(2))
    os.kill(server._process.pid, signal.SIGSTOP)
    assert lives.poll() is None
    dies.send_signal(signal.SIGKILL)
    assert end_of(dies) == -signal.SIGKILL
    assert lives.poll() == -signal.SIGKILL, "a server that hangs is ended, and the system ends its ranks"


def test_a_killed_server_ends_its_ranks_and_is_replaced(starter):
    current = starter()
    server = current()
    rank = server.start(["time.sleep(60)"], {})
    os.kill(server._process.pid, signal.SIGKILL)
    assert end_of(rank) == -signal.SIGKILL
    assert isinstance(current(), ranks.Spawn), "a restart does not wait for the imports of the next server"
    wait_for(lambda: not isinstance(current(), ranks.Spawn))
    assert end_of(current().start(["sys.exit(3)"], {})) == 3


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_server_that_no_longer_answers_is_ended_and_the_rank_spawned(starter, monkeypatch, caplog, number):
    monkeypatch.setattr(ranks, "MAX_FORK_S", 0.5)
    server = starter()()
    before = server.start(["time.sleep(60)"], {})
    os.kill(server._process.pid, number)
    with caplog.at_level(logging.WARNING):
        after = [server.start(["import sys; sys.exit(9)"], dict(os.environ)) for _ in range(2)]
    assert "a rank is started with its own imports" in caplog.text
    assert [end_of(rank) for rank in after] == [9, 9]
    assert end_of(before) == -signal.SIGKILL
