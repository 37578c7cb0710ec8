"""An error that the driver reports is in the record of the launcher whose rank met it; the rank is a small program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu
LAUNCHER = """
import sys
from megatron_trainer.process import launch, ranks
ranks.RANK_COMMAND = [sys.executable, {program!r}]
sys.exit(launch.main(["sft"]))
"""
# A kernel that writes far outside of what was allocated.
ILLEGAL = """
import time, torch
time.sleep(2)
source = 'extern "C" __global__ void bad(float* p) { p[1ull << 45] = 1.0f; }'
torch.cuda._compile_kernel(source, "bad")((1, 1, 1), (1, 1, 1), (torch.zeros(4, device="cuda"),))
torch.cuda.synchronize()
"""


def test_the_record_of_a_failed_rank_has_what_the_driver_said(tmp_path: Path):
    pytest.importorskip("pynvml")
    program = tmp_path / "rank.py"
    program.write_text(ILLEGAL)
    log = tmp_path / "termination-log"
    env = {
        **os.environ,
        "NPROC_PER_NODE": "1",
        "MTJ_TERMINATION_LOG": str(log),
        "MTJ_RANK_START": "spawn",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER.format(program=str(program))], env=env, timeout=120, check=False
    )
    assert done.returncode != 0
    card = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]  # the driver numbers all cards of the machine
    assert json.loads(log.read_text())["gpuError"].startswith(f"GPU {card}: Xid ")
