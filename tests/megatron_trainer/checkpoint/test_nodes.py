"""A job that goes on with another number of nodes, through `mtj run`: each node is a launcher with ranks of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.ranks.tiny_run import arguments, write_data

pytestmark = [pytest.mark.dist, pytest.mark.slow]
STEPS, STOPPED_AT = 8, 4
PROGRAM = "from megatron_operator.cli import main; raise SystemExit(main())"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "train.jsonl", rows=4 * STEPS)


@pytest.fixture
def train(llama, data, tmp_path):
    """train(volume, nodes, ranks of each, steps): the losses of all steps so far."""

    def run(volume: str, nodes: int, ranks: int, steps: int) -> list[float]:
        given = arguments(
            llama, data, Path("unused"), train_iters=steps, lr_decay_iters=STEPS, dataloader_type="single"
        )
        given = {name: value for name, value in given.items() if name not in ("save", "add_version")}
        folder = tmp_path / f"{volume}-{nodes}x{ranks}"
        (tmp_path / volume).mkdir(exist_ok=True)
        folder.mkdir()
        spec = {"task": "sft", "image": "none", "numNodes": nodes, "nprocPerNode": ranks, "args": given}
        spec["checkpoint"] = {"pvc": {"claimName": "checkpoints"}, "mountPath": "/checkpoints"}
        job = {"apiVersion": "megatrontrain.dev/v1alpha1", "kind": "MegatronTrainJob", "metadata": {"name": "moved"}}
        (folder / "job.yaml").write_text(yaml.safe_dump({**job, "spec": spec}))
        command = [sys.executable, "-c", PROGRAM, "run", str(folder / "job.yaml")]
        command += ["--state-dir", str(folder / "state"), "--volume", f"checkpoints={tmp_path / volume}"]
        environment = {**os.environ, "MTJ_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        (log,) = (tmp_path / volume).rglob("logging.jsonl")
        lines = map(json.loads, log.read_text().splitlines())
        return [line["lm loss"] for line in lines if "lm loss" in line]

    return run


def test_two_nodes_become_one_with_as_many_ranks_bit_identically_or_with_fewer_within_rounding(train, tmp_path):
    whole = train("whole", 1, 2, STEPS)
    assert len(whole) == STEPS
    first = train("moved", 2, 1, STOPPED_AT)
    assert first == whole[:STOPPED_AT]
    subprocess.run(["cp", "-r", str(tmp_path / "moved"), str(tmp_path / "fewer")], check=True)
    assert train("moved", 1, 2, STEPS) == whole
    assert train("fewer", 1, 1, STEPS) == pytest.approx(whole, abs=1e-4)
