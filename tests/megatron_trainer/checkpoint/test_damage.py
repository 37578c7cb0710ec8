"""Damaged checkpoints and processes killed while they save: what is resumed is right, or nothing is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.ranks.tiny_run import arguments

SCRIPT = Path(__file__).parents[2] / "support" / "checkpoint" / "checkpoint_damage.py"
pytestmark = [pytest.mark.dist, pytest.mark.timeout(2400)]


@pytest.mark.parametrize(
    ("cases", "first_seed"), [(2, 0), pytest.param(300, 1000, marks=pytest.mark.slow)], ids=["2 cases", "300 cases"]
)
def test_a_run_resumes_from_the_newest_undamaged_checkpoint(llama, tmp_path, cases, first_seed):
    given = arguments(llama, tmp_path / "no-data.jsonl", tmp_path / "run")
    (tmp_path / "run.json").write_text(json.dumps(given))
    command = [sys.executable, str(SCRIPT), "--arguments", str(tmp_path / "run.json")]
    command += ["--cases", str(cases), "--seed", str(first_seed)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "MTJ_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=2300)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.endswith(f"{cases} cases, 0 wrong\n")
