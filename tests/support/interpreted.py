"""Programs whose Triton kernels are interpreted, without a GPU.

That must be said before Triton is imported, so each is a process of its own; it prints JSON, a value a line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def lines_of(module: str) -> list[Any]:
    """What the program `python -m module` prints. Raises CalledProcessError."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "MTJ_DEVICE": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-m", module], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]
