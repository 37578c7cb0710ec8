"""The operator's installation: an empty environment with the extra [operator] has no torch, and the commands work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_operator_installs_without_torch_and_its_tests_pass_there(tmp_path):
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", f"{ROOT}[operator]", "pytest", "pytest-timeout"], check=True
    )
    listed = subprocess.run([python, "-m", "pip", "list", "--format", "json"], check=True, capture_output=True)
    names = {package["name"].lower() for package in json.loads(listed.stdout)}
    assert "kopf" in names
    assert names.isdisjoint({"torch", "numpy", "transformers", "megatron-core"})
    tests = [python, "-m", "pytest", "-q", "tests/megatron_operator", "-m", "not slow and not cluster", "-x"]
    ran = subprocess.run(tests, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-3000:]
