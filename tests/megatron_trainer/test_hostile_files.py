"""Files made to harm whoever reads them: each ends with a reason, within bounded memory and time, and runs no code."""

import os
import subprocess
import sys

import pytest

from tests.support.data import hostile_files


@pytest.mark.parametrize(
    ("cases", "seed"),
    [pytest.param(30, 0, id="30"), pytest.param(2000, 1, marks=pytest.mark.slow, id="2000")],
)
def test_hostile_files_of_every_kind_end_with_a_reason(tmp_path, cases, seed):
    command = [sys.executable, hostile_files.__file__, str(tmp_path), str(cases), str(seed)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == f"{cases} files, 0 wrong"
