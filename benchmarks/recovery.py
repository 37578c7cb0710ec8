"""How long training stalls when a process is killed, by phase: ranks again in the living pod, and a new gang.

    python benchmarks/recovery.py --folder DIR [--kills 5] [--ways "in place" "new gang" "new gang, spawned"]
        [--device cpu] [--layers 2] [--hidden 64] [--ranks 2]

Trains a random Llama under `mtj run`, kills a rank (in place) or the launcher (new gang) with SIGKILL once a checkpoint
has been written, waits for the first step of the next attempt, and prints a Markdown table of seconds since the kill.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
PARTS = [str(ROOT / part) for part in ("operator", "trainer", ".")]
sys.path[:0] = PARTS

from megatron_operator.core.timestamp import to_seconds
from tests.support.models import tiny_model
from tests.support.ranks import tiny_run

PATIENCE_S = 900
PHASES = ("detected", "decided", "ranksStarted", "processGroup", "loaded", "firstStep")
WAYS = {
    "in place": ("rank", "fork"),
    "in place, spawned": ("rank", "spawn"),
    "new gang": ("launcher", "fork"),
    "new gang, spawned": ("launcher", "spawn"),
}
"""Name of a way -> (what is killed, MTJ_RANK_START)."""


@dataclass(kw_only=True)
class Job:
    """One training and the times that its restarts took."""

    way: str
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def status(self) -> dict:
        file = self.folder / "state" / "recovery" / "status.yaml"
        return yaml.safe_load(file.read_text()) if file.exists() else {}

    @property
    def attempt(self) -> int:
        return self.status.get("restarts", {}).get("attempt", 0)


def manifest(model: Path, data: Path, way: str, ranks: int) -> dict:
    given = tiny_run.arguments(model, data, Path("unused"), train_iters=1_000_000, save_interval=5, log_interval=1)
    arguments = {name: value for name, value in given.items() if name not in ("save", "add_version")}
    _, start = WAYS[way]
    return {
        "apiVersion": "megatrontrain.dev/v1alpha1",
        "kind": "MegatronTrainJob",
        "metadata": {"name": "recovery"},
        "spec": {
            "task": "sft",
            "image": "none",
            "nprocPerNode": ranks,
            "args": {name: value for name, value in arguments.items() if value is not None},
            "checkpoint": {"pvc": {"claimName": "checkpoints"}, "mountPath": "/checkpoints"},
            "env": [{"name": "MTJ_RANK_START", "value": start}],
            "failurePolicy": {"maxRestarts": 1000},
        },
    }


def start(job: Job, model: Path, data: Path, options: argparse.Namespace) -> None:
    job.folder.mkdir()
    file = job.folder / "job.yaml"
    file.write_text(yaml.safe_dump(manifest(model, data, job.way, options.ranks)))
    code = "from megatron_operator.cli import main; raise SystemExit(main())"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(PARTS)}
    if options.device:
        environment["MTJ_DEVICE"] = options.device
    with (job.folder / "mtj.log").open("w") as log:
        command = [sys.executable, "-c", code, "run", str(file), "--state-dir", str(job.folder / "state")]
        job.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def wait(job: Job, is_true) -> None:
    until = time.monotonic() + PATIENCE_S
    while not is_true():
        if job.process.poll() is not None or time.monotonic() > until:
            log = job.folder / "state" / "recovery" / "logs"
            ends = [file.read_text()[-2000:] for file in sorted(log.glob("*.log"))]
            raise SystemExit((job.folder / "mtj.log").read_text()[-2000:] + "\n".join(ends))
        time.sleep(0.05)


def ranks_of(job: Job) -> list[int]:
    """Processes of the job's ranks: children of a launcher, or of the process that it forks ranks from."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
            above = Path(f"/proc/{parent}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        text = [b" ".join(each).decode(errors="replace") for each in (words, above)]
        is_forked = "fork_server" in text[0] and "fork_server" in text[1]
        is_spawned = "process.rank" in text[0]
        if str(job.folder) in text[0] and (is_forked or is_spawned):
            found.append(int(pid))
    return found


def launcher_of(job: Job) -> int:
    restarts = job.status["restarts"]
    pod = f"recovery-a{restarts.get('podAttempt', restarts['attempt'])}-master-0"
    record = json.loads((job.folder / "state" / "recovery" / "pods" / pod / "process.json").read_text())
    return record["identity"]["pid"]


def recover(job: Job) -> dict[str, float]:
    """Kills a process; seconds from then to each phase of the restart."""
    before, saved = job.attempt, job.status.get("checkpoint", {}).get("latestIteration", 0)
    wait(job, lambda: job.status.get("checkpoint", {}).get("latestIteration", 0) > saved)
    kills_rank = WAYS[job.way][0] == "rank"
    victim = ranks_of(job)[-1] if kills_rank else launcher_of(job)
    killed_at = time.time()
    os.kill(victim, signal.SIGKILL)
    wait(job, lambda: job.attempt == before + 1 and "firstStepTime" in job.status.get("lastRestart", {}))
    last = job.status["lastRestart"]
    assert last["inPlace"] == kills_rank, last
    return {phase: to_seconds(last[f"{phase}Time"]) - killed_at for phase in PHASES}


def table(measured: dict[str, list[dict[str, float]]]) -> str:
    """Medians by phase, and the range of the whole."""
    lines = ["| way | n | " + " | ".join(PHASES) + " | first step, range |", "|" + "---|" * (len(PHASES) + 3)]
    for way, found in measured.items():
        medians = [f"{statistics.median(each[phase] for each in found):.2f}" for phase in PHASES]
        whole = [each["firstStep"] for each in found]
        lines.append(f"| {way} | {len(found)} | " + " | ".join(medians) + f" | {min(whole):.2f}-{max(whole):.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Measures every way in turn and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["in place", "new gang", "new gang, spawned"])
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=64)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no training outlives this program
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        sizes = {"num_hidden_layers": options.layers, "hidden_size": options.hidden}
        model = tiny_model.make("llama", folder, **sizes)
        data = tiny_run.write_data(folder / "train.jsonl")
        measured: dict[str, list[dict[str, float]]] = {way: [] for way in options.ways}
        for way in options.ways:  # one after the other: two at once would share the cores
            job = Job(way=way, folder=folder / way.replace(" ", "-").replace(",", ""))
            start(job, model, data, options)
            try:
                wait(job, lambda job=job: job.status.get("checkpoint"))
                for _ in range(options.kills):
                    measured[way].append(recover(job))
                    print(way, {phase: round(seconds, 2) for phase, seconds in measured[way][-1].items()}, flush=True)
            finally:
                job.process.send_signal(signal.SIGTERM)
                job.process.wait(PATIENCE_S)
    print(table(measured))


if __name__ == "__main__":
    main()
