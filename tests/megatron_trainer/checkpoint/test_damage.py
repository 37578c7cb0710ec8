"""Damaged checkpoints and processes killed while they save: what is resumed is right, or nothing is."""

import json

import pytest

from tests.support.checkpoint import checkpoint_damage
from tests.support.ranks.pool import forks, write_to
from tests.support.ranks.tiny_run import arguments

pytestmark = [pytest.mark.dist, pytest.mark.timeout(2400)]


@pytest.mark.parametrize(
    ("cases", "first_seed"), [(2, 0), pytest.param(300, 1000, marks=pytest.mark.slow)], ids=["2 cases", "300 cases"]
)
def test_a_run_resumes_from_the_newest_undamaged_checkpoint(llama, tmp_path, cases, first_seed):
    """In a process of its own, which forks those that it kills; it comes from the one that has imported everything."""
    given = arguments(llama, tmp_path / "no-data.jsonl", tmp_path / "run")
    (tmp_path / "run.json").write_text(json.dumps(given))
    words = ["--arguments", str(tmp_path / "run.json"), "--cases", str(cases), "--seed", str(first_seed)]
    process = forks().Process(target=run_program, args=(words, tmp_path / "printed.txt"))
    process.start()
    process.join(2300)
    process.kill()
    printed = (tmp_path / "printed.txt").read_text()
    assert process.exitcode == 0, printed[-2000:]
    assert printed.endswith(f"{cases} cases, 0 wrong\n")


def run_program(words, log):
    """What `python -m tests.support.checkpoint.checkpoint_damage` does with these words, printed into a file."""
    write_to(log)
    raise SystemExit(checkpoint_damage.main(words))
