"""SIGTERM for the launcher of a pod, as a kubelet sends it: real ranks save at their next step and end in time."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from local_cluster.control_plane import free_port
from megatron_trainjob.checkpoint_folder import checkpoints
from megatron_trainjob.exit_codes import ExitCode
from tests.support.ranks.tiny_run import TinyRun, arguments, read_run, train, write_data

pytestmark = [pytest.mark.dist, pytest.mark.slow]
GRACE_S = 30
"""Kubernetes' own default, a quarter of ours."""


def wait_for_step(process: subprocess.Popen, folder: Path, step: int) -> None:
    while step not in read_run(folder).column("iteration"):
        assert process.poll() is None, "the run ended by itself"
        time.sleep(0.1)


def stopped(given: dict[str, object], folder: Path) -> TinyRun:
    """A run of two ranks that is asked to stop after a few steps and must end within the grace period."""
    config = folder / "args.yaml"
    config.write_text(yaml.safe_dump(given))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "MTJ_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
        "NPROC_PER_NODE": "2",
        "MASTER_PORT": str(free_port()),
        "MTJ_TERMINATION_LOG": str(folder / "termination-log"),
    }
    command = [sys.executable, "-m", "megatron_trainer", "sft", "--config", str(config)]
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        wait_for_step(process, Path(str(given["save"])), 5)
        process.send_signal(signal.SIGTERM)
        try:
            exit_code = process.wait(GRACE_S)
        finally:
            process.kill()
    return read_run(Path(str(given["save"])), exit_code=exit_code)


@pytest.mark.parametrize("async_save", [False, True], ids=["training waits", "in the background"])
def test_a_terminated_run_saves_its_last_step_within_the_grace_period_and_goes_on_bit_identically(
    llama, tmp_path, async_save
):
    data = write_data(tmp_path / "train.jsonl")
    common = {"lr_decay_style": "constant", "async_save": async_save, "save_interval": 3}
    given = arguments(llama, data, tmp_path / "run", train_iters=100_000, **common)
    run = stopped(given, tmp_path)
    assert run.exit_code == ExitCode.PREEMPTED
    assert json.loads((tmp_path / "termination-log").read_text())["exitCode"] == ExitCode.PREEMPTED
    last = run.column("iteration")[-1]
    newest = checkpoints(run.folder)[0]
    assert (newest.iteration, newest.problem) == (last, None)
    steps = last + 3
    resumed = train({**given, "train_iters": steps}, ranks=2, resume="Required", attempt=1)
    whole = train(arguments(llama, data, tmp_path / "whole", train_iters=steps, **common), ranks=2)
    assert resumed.column("lm loss") == whole.column("lm loss")
    assert len(whole.column("lm loss")) == steps
