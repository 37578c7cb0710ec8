"""Kills a real training at random moments through `mtj run` and compares it, step by step, with one left alone.

    python -m tests.support.checkpoint.chaos_training --kills 20 --seed 1 [--data streaming]

Two ranks train a tiny random Llama; each kill is SIGKILL for a rank or for the pod's launcher, at a random moment of
starting, training, evaluating or saving. The gang has to come back from its newest checkpoint each time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from megatron_trainjob import progress
from tests.support.models import tiny_model
from tests.support.ranks import tiny_run

LONGEST_WAIT_S = 25.0
PACKED = {"packing": True, "packing_length": 128}
DATA = {
    "prepared": {},
    "packed": PACKED,
    "streaming": {"streaming": True, "shuffle_buffer_size": 5, "num_workers": None},
    "streaming and packed": {"streaming": True, "shuffle_buffer_size": 5, "num_workers": None, **PACKED},
    "in memory": {"save_interval": 1_000_000},
}
"""How the run reads its rows, by name; in memory: prepared, one rank, and nothing is saved but in memory."""
MEMORY = {"memory": {"intervalIterations": 3, "sizeLimit": "1Gi"}}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run left: its losses by step, the bytes of its weights, and the restarts that it took."""

    losses: tuple[float, ...]
    weights: bytes
    restarts: int
    from_memory: tuple[int, ...]
    """The iterations of the memory checkpoints from which it went on."""


def manifest(model: Path, data: Path, *, steps: int, way: str) -> dict:
    given = tiny_run.arguments(model, data, Path("unused"), train_iters=steps, save_interval=25, to_hf=True)
    given |= {"val_dataset": [str(data)], "eval_interval": 50, "eval_iters": 1, "log_interval": 1, **DATA[way]}
    left_out = ("save", "add_version")
    arguments = {name: value for name, value in given.items() if name not in left_out and value is not None}
    return {
        "apiVersion": "megatrontrain.dev/v1alpha1",
        "kind": "MegatronTrainJob",
        "metadata": {"name": "chaos"},
        "spec": {
            "task": "sft",
            "image": "none",
            "numNodes": 1,
            "nprocPerNode": 1 if way == "in memory" else 2,
            "args": arguments,
            "checkpoint": {
                "pvc": {"claimName": "checkpoints"},
                "mountPath": "/checkpoints",
                **(MEMORY if way == "in memory" else {}),
            },
            "failurePolicy": {"maxRestarts": 1000, "backoffSeconds": {"initial": 1, "max": 1}},
        },
    }


def run(job: Path, folder: Path, *, kills: int, chance: random.Random, kill_at: int = 0) -> Outcome:
    """Runs the job to its end, killing `kills` times on the way: at random moments, or at this step.

    Raises AssertionError when the job did not succeed, or ended before all kills were made.
    """
    folder.mkdir()
    command = [
        sys.executable,
        "-c",
        "from megatron_operator.cli import main; raise SystemExit(main())",
        "run",
        str(job),
    ]
    environment = {
        **os.environ,
        "MTJ_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    flags = ["--state-dir", str(folder / "state"), "--volume", f"checkpoints={folder / 'checkpoints'}"]
    (folder / "checkpoints").mkdir()
    with (folder / "mtj.log").open("w") as log:
        process = subprocess.Popen([*command, *flags], env=environment, stdout=log, stderr=log)
        for number in range(kills):
            wait_for_step(process, folder, kill_at)
            if not kill_one(process, folder, chance, at_once=kill_at > 0):
                raise AssertionError(f"the job ended after {number} of {kills} kills; give it more steps")
        code = process.wait(900)
    assert code == 0, (folder / "mtj.log").read_text()[-3000:]
    return outcome(folder)


def wait_for_step(process: subprocess.Popen, folder: Path, step: int) -> None:
    """Until the run has made this step, or has ended."""
    record = folder / "state" / "chaos" / progress.FILE
    while process.poll() is None:
        known = progress.read(record)
        if step == 0 or (known is not None and known.iteration >= step):
            return
        time.sleep(0.02)


def kill_one(process: subprocess.Popen, folder: Path, chance: random.Random, *, at_once: bool = False) -> bool:
    """Kills one of the job's processes, after a random time unless at once; False when the job ended before."""
    time.sleep(0 if at_once else chance.uniform(0.5, LONGEST_WAIT_S))
    victims: list[int] = []
    while not victims:
        if process.poll() is not None:
            return False
        victims = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if belongs(pid, folder)]
        time.sleep(0.05)
    victim = chance.choice(victims)
    try:
        os.kill(victim, signal.SIGKILL)
    except ProcessLookupError:
        return kill_one(process, folder, chance, at_once=at_once)
    return True


def belongs(pid: int, folder: Path) -> bool:
    """Whether this is a launcher or a rank of the run in the folder."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return False
    return "megatron_trainer" in command and str(folder / "state") in command


def outcome(folder: Path) -> Outcome:
    (log,) = (folder / "checkpoints").rglob("logging.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    status = yaml.safe_load((folder / "state" / "chaos" / "status.yaml").read_text())
    logs = "".join(path.read_text() for path in sorted((folder / "state" / "chaos" / "logs").glob("*.log")))
    return Outcome(
        from_memory=tuple(map(int, re.findall(r"resuming from memory iteration=(\d+)", logs))),
        losses=tuple(line["lm loss"] for line in lines if "lm loss" in line),
        weights=(log.parent / "hf" / "model.safetensors").read_bytes(),
        restarts=status.get("restarts", {}).get("total", 0),
    )


def compare(folder: Path, *, kills: int, seed: int, steps: int, way: str = "prepared", kill_at: int = 0) -> str:
    """A line that says what was shown. Raises AssertionError at the first difference."""
    data = tiny_run.write_data(folder / "train.jsonl")
    job = folder / "job.yaml"
    job.write_text(yaml.safe_dump(manifest(tiny_model.make("llama", folder), data, steps=steps, way=way)))
    alone = run(job, folder / "alone", kills=0, chance=random.Random(seed))
    disturbed = run(job, folder / "disturbed", kills=kills, chance=random.Random(seed), kill_at=kill_at)
    assert len(alone.losses) == steps
    different = [
        step for step, pair in enumerate(zip(alone.losses, disturbed.losses, strict=True), 1) if len(set(pair)) > 1
    ]
    assert different == [], f"losses differ first at step {different[0]}"
    assert alone.weights == disturbed.weights
    remembered = f", from memory at {disturbed.from_memory}" if disturbed.from_memory else ""
    return (
        f"{way}, seed {seed}: {kills} kills, {disturbed.restarts} restarts{remembered}, {steps} steps: every loss and "
        f"the final weights bit-identical to the undisturbed run (last loss {alone.losses[-1]:.6f})"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--data", choices=DATA, default="prepared")
    options = parser.parse_args()
    given = {"kills": options.kills, "seed": options.seed, "steps": options.steps, "way": options.data}
    with tempfile.TemporaryDirectory() as temporary:
        sys.stdout.write(compare(Path(temporary), **given) + "\n")
