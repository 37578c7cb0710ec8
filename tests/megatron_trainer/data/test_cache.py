"""One build however many ask, and never a half-built folder: with processes that wait, die, and fail."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_trainer.data.storage.cache import built_once
from tests.support.processes import wait_for

SCRIPT = Path(__file__).parent / "cache_process.py"


def start(folder, seconds, log):
    arguments = [sys.executable, str(SCRIPT), json.dumps(sys.path), str(folder), str(seconds), str(log)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def test_processes_that_ask_together_build_once(tmp_path):
    folder, log = tmp_path / "cache" / "entry", tmp_path / "log"
    processes = [start(folder, 0.5, log) for _ in range(3)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [json.loads(output) for output in outputs] == [["first", "second"]] * 3
    assert log.read_text() == "built\n"
    assert [path.name for path in folder.parent.iterdir()] == ["entry"]


def test_a_killed_builder_is_replaced(tmp_path):
    folder, log = tmp_path / "entry", tmp_path / "log"
    dead = start(folder, 1000, log)
    wait_for(log.exists)
    dead.send_signal(signal.SIGKILL)
    dead.communicate(timeout=60)
    assert not folder.exists()
    assert (tmp_path / "entry.lock").exists()
    second = start(folder, 0, log)
    assert json.loads(second.communicate(timeout=60)[0]) == ["first", "second"]
    assert log.read_text() == "built\nbuilt\n"


def test_a_living_builder_is_waited_for_longer_than_a_dead_one(tmp_path):
    folder, log = tmp_path / "entry", tmp_path / "log"
    slow = start(folder, 5, log)  # the others give up a dead builder after 3 s
    wait_for(log.exists)
    waiting = start(folder, 0, log)
    assert json.loads(waiting.communicate(timeout=60)[0]) == ["first", "second"]
    slow.communicate(timeout=60)
    assert log.read_text() == "built\n"


def test_a_node_that_was_cut_off_does_not_replace_what_another_built_meanwhile(tmp_path):
    """The first builder is frozen until it is given up; when it wakes, readers have the other's folder open."""
    folder, log = tmp_path / "entry", tmp_path / "log"
    frozen = start(folder, 0.2, log)
    wait_for(log.exists)
    frozen.send_signal(signal.SIGSTOP)
    assert json.loads(start(folder, 0, log).communicate(timeout=60)[0]) == ["first", "second"]
    built = (folder / "first").stat().st_ino
    frozen.send_signal(signal.SIGCONT)
    assert json.loads(frozen.communicate(timeout=60)[0]) == ["first", "second"]
    assert (folder / "first").stat().st_ino == built
    assert log.read_text() == "built\nbuilt\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["entry", "log"]


def test_what_the_build_raises_is_raised_and_leaves_nothing(tmp_path):
    def fail(aside):
        aside.mkdir()
        raise KeyError("no")

    with pytest.raises(KeyError):
        built_once(tmp_path / "entry", fail)
    assert list(tmp_path.iterdir()) == []
    assert built_once(tmp_path / "entry", Path.mkdir).is_dir()


def test_renewing_replaces_the_folder(tmp_path):
    def build(text):
        return lambda aside: (aside.mkdir(), (aside / "text").write_text(text))

    built_once(tmp_path / "entry", build("old"))
    built_once(tmp_path / "entry", build("unused"))
    assert (tmp_path / "entry" / "text").read_text() == "old"
    built_once(tmp_path / "entry", build("new"), renew=True)
    assert (tmp_path / "entry" / "text").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]
