"""Who works on the operator or the contract needs no torch: their tests and what these import do without."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("tests/megatron_trainjob", "tests/megatron_operator", "tests/charts", "tests/cluster")
COLLECT = """
import sys, pytest
for name in ("torch", "megatron", "transformers", "safetensors", "datasets", "numpy", "peft", "trl"):
    sys.modules[name] = None  # an import raises ModuleNotFoundError, as without the package
sys.exit(pytest.main(["--collect-only", "-qq", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""


def test_their_tests_are_collected_without_the_trainers_packages():
    command = [sys.executable, "-c", COLLECT, *FOLDERS]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-4000:]
