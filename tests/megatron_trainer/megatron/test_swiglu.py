"""SwiGLU's gradient by the kernel, which Triton interprets here; on a GPU: tests/gpu/test_gpu_lora.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


def test_the_kernels_gradient_is_that_of_autograd():
    command = [sys.executable, "-m", "tests.support.models.swiglu_gradient"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "MTJ_DEVICE": "cpu"}
    done = subprocess.run(
        command, env=environment, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True
    )
    assert max(json.loads(done.stdout)) <= 1e-3, "float16 keeps 11 bits"
