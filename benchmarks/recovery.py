"""How long training stalls when a process is killed, by phase: ranks again in the living pod, and a new gang.

    python benchmarks/recovery.py --folder DIR [--kills 5] [--ways "in place" "new gang" "new gang, spawned" "hung"]
        [--device cpu] [--layers 2] [--hidden 64] [--ranks 2] [--record FILE] [--minutes M]
        [--model DIR] [--data FILE] [--arguments '{"train_type": "lora"}']
    python benchmarks/recovery.py --folder DIR --goodput 10 [--kill-every 60] [--device cpu]

Trains a random Llama under `mtj run`, kills a rank (in place) or the launcher (new gang) with SIGKILL, or stops a rank
with SIGSTOP (hung: found after hangTimeoutSeconds, ten here), once a checkpoint has been written, waits for the first
step of the next attempt, and prints a Markdown table of seconds since the kill. Ways whose ranks start alike take turns
in one job. --record keeps what was measured, and the table is of all of it.

--goodput trains two jobs side by side for so many minutes, one of them with a rank killed again and again: its steps
as a share of the other's, whether every loss is the same, bit by bit, how many steps were done again, and the phases of
each restart. Each job keeps to processors of its own, half of this machine's: otherwise the undisturbed one would have
more of them while the other's ranks start, and the share would be too small. Midway between two kills they exchange
their halves, so that other work on one of them weighs on both jobs alike. One job after the other would take twice as
long, and other work that comes and goes would meet one of them only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
PARTS = [str(ROOT / part) for part in ("operator", "trainer", ".")]
sys.path[:0] = PARTS

from megatron_operator.timestamp import to_seconds
from tests.support.models import tiny_model
from tests.support.ranks import tiny_run

PATIENCE_S = 900
LOOK_S = 0.5
RESUMED = re.compile(r"resuming from memory iteration=(?P<memory>\d+)|resuming job=\S+ from=\S*iter_(?P<volume>\d+)")
GOODPUT_MEMORY = {"memory": {"intervalIterations": 5, "sizeLimit": "1Gi"}}
SAVES_BESIDE_MEMORY = 100
"""Steps between checkpoints in the volume, where others are in memory."""
PHASES = ("detected", "decided", "ranksStarted", "processGroup", "loaded", "firstStep")
WAYS = {
    "in place": ("rank", "fork"),
    "in place, spawned": ("rank", "spawn"),
    "new gang": ("launcher", "fork"),
    "new gang, spawned": ("launcher", "spawn"),
    "hung": ("rank", "fork"),
}
"""Name of a way -> (what is killed or stopped, MTJ_RANK_START)."""
HANG_TIMEOUT_S = 10


@dataclass(kw_only=True)
class Job:
    """One training. processors: that it is kept to, None for all."""

    start: str
    folder: Path
    processors: frozenset[int] | None = None
    process: subprocess.Popen[bytes] | None = None

    @property
    def status(self) -> dict:
        file = self.folder / "state" / "recovery" / "status.yaml"
        return yaml.safe_load(file.read_text()) if file.exists() else {}

    @property
    def attempt(self) -> int:
        return self.status.get("restarts", {}).get("attempt", 0)

    def losses(self) -> dict[int, float]:
        """By iteration; of steps that were done again, the last."""
        volume = self.folder / "state" / "recovery" / "volumes" / "checkpoints"
        lines = [line for log in volume.rglob("logging.jsonl") for line in log.read_text().splitlines(keepends=True)]
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
        return {row["iteration"]: row["lm loss"] for row in rows if "lm loss" in row}

    def resumed(self) -> list[tuple[str, int]]:
        """Where each restart has resumed from, and after which iteration."""
        logs = sorted((self.folder / "state" / "recovery" / "logs").glob("*.log"))
        found = [RESUMED.search(line) for log in logs for line in log.read_text(errors="replace").splitlines()]
        return [(each.lastgroup, int(each[each.lastgroup])) for each in found if each and each.lastgroup]

    def end(self) -> None:
        """Stops the training as a person would."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE_S)


def manifest(model: Path, data: Path, start: str, options: argparse.Namespace, checkpoint: dict) -> dict:
    ranks, hangs = options.ranks, options.goodput is None and "hung" in options.ways
    batch = {"global_batch_size": max(4, ranks), "save_interval": 5, "train_iters": 1_000_000, **options.arguments}
    given = tiny_run.arguments(model, data, Path("unused"), **batch)
    arguments = {name: value for name, value in given.items() if name not in ("save", "add_version")}
    if checkpoint:
        arguments["save_interval"] = SAVES_BESIDE_MEMORY
    return {
        "apiVersion": "megatrontrain.dev/v1alpha1",
        "kind": "MegatronTrainJob",
        "metadata": {"name": "recovery"},
        "spec": {
            "task": "sft",
            "image": "none",
            "nprocPerNode": ranks,
            "args": {name: value for name, value in arguments.items() if value is not None},
            "checkpoint": {"pvc": {"claimName": "checkpoints"}, "mountPath": "/checkpoints", **checkpoint},
            "env": [{"name": "MTJ_RANK_START", "value": start}],
            "failurePolicy": {"maxRestarts": 1000, **({"hangTimeoutSeconds": HANG_TIMEOUT_S} if hangs else {})},
        },
    }


def started(job: Job, model: Path, data: Path, options: argparse.Namespace, checkpoint: dict | None = None) -> Job:
    job.folder.mkdir()
    file = job.folder / "job.yaml"
    file.write_text(yaml.safe_dump(manifest(model, data, job.start, options, checkpoint or {})))
    code = "from megatron_operator.cli import main; raise SystemExit(main())"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([*PARTS, *sys.path])}
    if options.device:
        environment["MTJ_DEVICE"] = options.device
    with (job.folder / "mtj.log").open("w") as log:
        command = [sys.executable, "-c", code, "run", str(file), "--state-dir", str(job.folder / "state")]
        keep = partial(os.sched_setaffinity, 0, job.processors) if job.processors else None
        job.process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True, preexec_fn=keep
        )
    return job


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


def recover(job: Job, way: str) -> dict[str, float]:
    """Kills a process; seconds from then to each phase of the restart, and the steps that were done again."""
    before, saved = job.attempt, job.status.get("checkpoint", {}).get("latestIteration", 0)
    wait(job, lambda: job.status.get("checkpoint", {}).get("latestIteration", 0) > saved)
    kills_rank = WAYS[way][0] == "rank"
    victim = ranks_of(job)[-1] if kills_rank else launcher_of(job)
    killed_at = time.time()
    os.kill(victim, signal.SIGSTOP if way == "hung" else signal.SIGKILL)
    reached = max(job.losses())
    wait(job, lambda: job.attempt == before + 1 and "firstStepTime" in job.status.get("lastRestart", {}))
    last = job.status["lastRestart"]
    assert last["inPlace"] == kills_rank, last
    lost = reached - job.status["restarts"]["checkpointIteration"]
    return {phase: to_seconds(last[f"{phase}Time"]) - killed_at for phase in PHASES} | {"stepsLost": max(0, lost)}


def table(measured: list[dict]) -> str:
    """Medians by phase, and the range of the whole."""
    heads = (*PHASES, "first step, range", "steps lost")
    lines = ["| way | n | " + " | ".join(heads) + " |", "|" + "---|" * (len(heads) + 2)]
    for way in WAYS:
        found = [each for each in measured if each["way"] == way]
        if found:
            medians = [f"{statistics.median(each[phase] for each in found):.2f}" for phase in PHASES]
            whole = [each["firstStep"] for each in found]
            lost = f"{statistics.mean(each['stepsLost'] for each in found):.1f}"
            cells = (way, str(len(found)), *medians, f"{min(whole):.2f}-{max(whole):.2f}", lost)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def measure_ways(options: argparse.Namespace, folder: Path, model: Path, data: Path) -> None:
    """A job for each way to start ranks; its ways take turns in it."""
    until = time.monotonic() + 60 * options.minutes
    for start in dict.fromkeys(WAYS[way][1] for way in options.ways):
        ways = [way for way in options.ways if WAYS[way][1] == start]
        job = started(Job(start=start, folder=folder / start), model, data, options)
        try:
            wait(job, lambda job=job: job.status.get("checkpoint"))
            for way in ways * options.kills:
                if time.monotonic() > until:
                    break
                found = {"way": way, **recover(job, way)}
                print(json.dumps(found), flush=True)
                with options.record.open("a") as record:
                    record.write(json.dumps(found) + "\n")
        finally:
            job.end()
    print(table([json.loads(line) for line in options.record.read_text().splitlines()]))


def halves() -> list[frozenset[int]]:
    """This machine's processors, in two equal shares."""
    all_of_them = sorted(os.sched_getaffinity(0))
    share = len(all_of_them) // 2
    if not share:
        raise SystemExit("--goodput needs two processors, one for each job")
    return [frozenset(all_of_them[:share]), frozenset(all_of_them[share : 2 * share])]


def keep(job: Job, processors: frozenset[int]) -> None:
    """Moves every thread of the job to these processors; its later processes start there."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if str(job.folder) in Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace"):
                for thread in os.listdir(f"/proc/{pid}/task"):
                    os.sched_setaffinity(int(thread), processors)


@dataclass(kw_only=True)
class Kills:
    """Ranks of one job that were killed. reached: the last step before each kill. told: the last restart shown."""

    job: Job
    reached: list[int] = field(default_factory=list)
    told: int = 0

    def one(self) -> None:
        """Kills the job's last rank, if it has any now."""
        if victims := ranks_of(self.job):
            killed_at = time.time()
            os.kill(victims[-1], signal.SIGKILL)
            self.reached.append(max(self.job.losses()))
            print(f"killed at {killed_at:.2f} after step {self.reached[-1]}", flush=True)

    def tell(self) -> None:
        """Prints the phases of a restart once all are known."""
        last = self.job.status.get("lastRestart", {})
        if last.get("attempt", 0) > self.told and "firstStepTime" in last:
            self.told = last["attempt"]
            began = to_seconds(last["detectedTime"])
            phases = {phase: round(to_seconds(last[f"{phase}Time"]) - began, 2) for phase in PHASES}
            print(json.dumps({"attempt": self.told, "inPlace": last["inPlace"], **phases}), flush=True)


def measure_goodput(options: argparse.Namespace, folder: Path, model: Path, data: Path) -> None:
    """Two jobs at once, so that both see the same load; checkpoints in memory between those in the volume."""
    shares = halves()
    alone, disturbed = (
        started(Job(start="fork", folder=folder / name, processors=share), model, data, options, GOODPUT_MEMORY)
        for name, share in zip(("alone", "disturbed"), shares, strict=True)
    )
    kills, first = Kills(job=disturbed), {}
    try:
        for job in (alone, disturbed):
            wait(job, job.losses)
        first = {id(job): max(job.losses()) for job in (alone, disturbed)}
        began, exchanges = time.monotonic(), 0
        while (now := time.monotonic()) < began + 60 * options.goodput:
            if now > began + options.kill_every * (len(kills.reached) + 0.5):
                kills.one()
            if now > began + options.kill_every * (exchanges + 1):
                exchanges += 1
                shares.reverse()
                keep(alone, shares[0])
                keep(disturbed, shares[1])
            kills.tell()
            time.sleep(LOOK_S)
    finally:  # also where it was cut off
        if first:
            print(f"minutes {(time.monotonic() - began) / 60:.1f}, kills {len(kills.reached)}", flush=True)
            tell_goodput(alone, kills, first)
        alone.end()
        disturbed.end()


def tell_goodput(alone: Job, kills: Kills, first: dict[int, int]) -> None:
    """Prints the steps since the first ones of both, and whether their losses are the same. Exits with 1 if not."""
    disturbed = kills.job
    losses, restarts = (alone.losses(), disturbed.losses()), disturbed.status["restarts"]
    done = [max(found) - first[id(job)] for found, job in zip(losses, (alone, disturbed), strict=True)]
    both = losses[0].keys() & losses[1].keys()
    different = sorted(step for step in both if losses[0][step] != losses[1][step])
    resumed = disturbed.resumed()
    again = [reached - step for reached, (_, step) in zip(kills.reached, resumed, strict=False)]
    print(f"restarts {restarts['total']}, of pods {restarts.get('podAttempt', restarts['attempt'])}")
    in_memory = sum(place == "memory" for place, _ in resumed)
    print(f"resumed from memory {in_memory} of {len(resumed)}, steps done again {again}")
    print(f"steps {done[1]} of {done[0]}: goodput {done[1] / done[0]:.3f}")
    print(f"losses compared {len(both)}, different {len(different)}", flush=True)
    if different:
        raise SystemExit(f"the disturbed training differs first at step {different[0]}")


def main() -> None:
    """Measures every way in turn and prints the table, or the goodput."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["in place", "new gang", "new gang, spawned"])
    parser.add_argument("--record", type=Path, help="a file of measurements that this go adds to")
    parser.add_argument("--minutes", type=float, default=60.0, help="no kill later than this")
    parser.add_argument("--goodput", type=float, metavar="MINUTES")
    parser.add_argument("--kill-every", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--model", type=Path, help="a folder instead of the random Llama")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--arguments", type=json.loads, default={}, help="of the trainer, as JSON")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no training outlives this program
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        options.record = options.record or folder / "record.jsonl"
        sizes = {"num_hidden_layers": options.layers, "hidden_size": options.hidden}
        model = options.model or tiny_model.make("llama", folder, **sizes)
        data = options.data or tiny_run.write_data(folder / "train.jsonl")
        measure = measure_ways if options.goodput is None else measure_goodput
        measure(options, folder, model, data)


if __name__ == "__main__":
    main()
