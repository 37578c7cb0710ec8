"""A real training under `mtj run` whose ranks are killed goes on in place, and ends as one that was left alone."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.support.checkpoint import chaos_training
from tests.support.models import tiny_model
from tests.support.ranks import tiny_run

STEPS = 200


def status_of(folder):
    file = folder / "state" / "chaos" / "status.yaml"
    return yaml.safe_load(file.read_text()) if file.exists() else {}


def ranks_of(folder):
    """Processes that were forked from the one that imports everything."""
    found = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
            above = Path(f"/proc/{parent}/cmdline").read_text()
        except OSError:
            continue
        if "fork_server" in above and chaos_training.belongs(pid, folder):
            found.append(pid)
    return found


def kill_after_a_checkpoint(process, folder, chance, **_):
    """Kills a rank once there is a newer checkpoint than at the last kill; False when the job ended before."""
    restarts = status_of(folder).get("restarts", {})
    while status_of(folder).get("checkpoint", {}).get("latestIteration", 0) <= restarts.get("checkpointIteration", 0):
        if process.poll() is not None:
            return False
        time.sleep(0.05)
    os.kill(chance.choice(ranks_of(folder)), signal.SIGKILL)
    while status_of(folder)["restarts"]["attempt"] == restarts.get("attempt", 0) and process.poll() is None:
        time.sleep(0.05)
    return True


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.timeout(900)
def test_killed_ranks_go_on_in_place_with_every_loss_of_the_undisturbed_run(tmp_path, monkeypatch):
    monkeypatch.setattr(chaos_training, "kill_one", kill_after_a_checkpoint)
    data = tiny_run.write_data(tmp_path / "train.jsonl")
    job = tmp_path / "job.yaml"
    model = tiny_model.make("llama", tmp_path)
    job.write_text(yaml.safe_dump(chaos_training.manifest(model, data, steps=STEPS, way="prepared")))
    alone = chaos_training.run(job, tmp_path / "alone", kills=0, chance=random.Random(1))
    disturbed = chaos_training.run(job, tmp_path / "disturbed", kills=2, chance=random.Random(1))
    assert len(alone.losses) == STEPS
    assert disturbed.losses == alone.losses
    assert disturbed.weights == alone.weights
    status = status_of(tmp_path / "disturbed")
    assert status["restarts"]["attempt"] == 2
    assert status["restarts"]["podAttempt"] == 0, "both restarts kept the pod"
    assert {"ranksStartedTime", "processGroupTime", "loadedTime"} <= set(status["lastRestart"])


def kill_a_rank(process, folder, chance, **_):
    os.kill(chance.choice(ranks_of(folder)), signal.SIGKILL)
    return True


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.timeout(900)
def test_a_rank_killed_between_saves_goes_on_in_place_from_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(chaos_training, "kill_one", kill_a_rank)
    said = chaos_training.compare(tmp_path, kills=1, seed=1, steps=60, way="in memory", kill_at=20)
    assert "bit-identical" in said
    assert "from memory at" in said
    status = status_of(tmp_path / "disturbed")
    assert status["restarts"]["attempt"] == 1
    assert status["restarts"]["podAttempt"] == 0, "the pod and its launcher stayed"


IMPORTS = """
import sys
from megatron_trainer.process import fork_server
fork_server._import_everything()
from megatron_trainer.process import run
before = set(sys.modules)
code = run.main(sys.argv[1:])
print("imported", code, *sorted({name.rpartition(".")[0] or name for name in set(sys.modules) - before}))
"""


@pytest.mark.slow
@pytest.mark.dist
def test_a_rank_that_was_forked_imports_little_more_until_it_has_trained(tmp_path):
    """Each import that the fork server lacks is made by every rank of a node again, in every restart."""
    model, data = tiny_model.make("llama", tmp_path), tiny_run.write_data(tmp_path / "train.jsonl")
    given = tiny_run.arguments(model, data, tmp_path / "out", train_iters=2, save_interval=1)
    config = tmp_path / "args.json"
    config.write_text(json.dumps({name: value for name, value in given.items() if value is not None}, default=str))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "MTJ_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", IMPORTS, "sft", "--config", str(config)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    (line,) = [each for each in done.stdout.splitlines() if each.startswith("imported ")]
    code, *packages = line.split()[1:]
    assert code == "0"
    assert len(packages) < 12, packages
