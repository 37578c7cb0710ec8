"""A program that stands for a trainer where none shall start: counts steps, keeps a checkpoint, tells its progress.

    python counting_program.py FOLDER [--steps 20] [--pause-at N] [--hang-at N] [--fail-at N --exit-code C] [--once]

Each pod keeps FOLDER/checkpoint-<node rank>, written every 5 steps and on SIGTERM (which ends it with 143), and goes
on from there; rank 0 writes the progress record. At a pause it makes FOLDER/paused-<node rank> and waits for SIGTERM
or for the file FOLDER/go; hanging, it does not even hear SIGTERM. With --once all that happens only in attempt 0.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("folder", type=Path)
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--step-s", type=float, default=0.0)
parser.add_argument("--pause-at", type=int)
parser.add_argument("--hang-at", type=int)
parser.add_argument("--fail-at", type=int)
parser.add_argument("--exit-code", type=int, default=1)
parser.add_argument("--once", action="store_true")
options = parser.parse_args()

node_rank = int(os.environ["NODE_RANK"])
attempt = int(os.environ["MTJ_RESTART_ATTEMPT"])
checkpoint = options.folder / f"checkpoint-{node_rank}"
stages = Path(os.environ["MTJ_STAGES_FILE"]) if "MTJ_STAGES_FILE" in os.environ else None
paused = options.folder / f"paused-{node_rank}"
checkpoint.parent.mkdir(parents=True, exist_ok=True)
stop = False


def on_term(number, frame):
    global stop
    stop = True


signal.signal(signal.SIGTERM, on_term)


def save(step):
    aside = checkpoint.with_suffix(".tmp")
    aside.write_text(str(step))
    aside.replace(checkpoint)


def saved():
    return int(checkpoint.read_text()) if checkpoint.exists() else 0


def tell(step, phase):
    if node_rank:
        return
    record = {
        "phase": phase,
        "attempt": attempt,
        "iteration": step,
        "total_iterations": options.steps,
        "metrics": {"loss": 1.0 / (step + 1)},
        "checkpoint_iteration": saved() or None,
        "checkpoint_path": str(checkpoint),
        "outputs": {"adapter": str(options.folder / "adapter")} if phase == "finished" else {},
        "updated_at": time.time(),
    }
    file = Path(os.environ["MTJ_PROGRESS_FILE"])
    file.with_suffix(".tmp").write_text(json.dumps(record))
    file.with_suffix(".tmp").replace(file)


def die(step):
    record = {"exitCode": options.exit_code, "reason": "ASKED", "rank": 0, "iteration": step, "message": f"step {step}"}
    Path(os.environ["MTJ_TERMINATION_LOG"]).write_text(json.dumps(record))
    sys.exit(options.exit_code)


is_faulty = not options.once or attempt == 0
step = saved()
print(f"attempt {attempt} node {node_rank} starts at {step}", flush=True)
tell(step, "training")
while step < options.steps:
    if stop:
        save(step)
        tell(step, "stopped")
        sys.exit(143)
    if is_faulty and step == options.pause_at and not (options.folder / "go").exists():
        paused.touch()
        time.sleep(0.02)
        continue
    if is_faulty and step == options.hang_at:
        paused.touch()
        time.sleep(3600)
    if is_faulty and step == options.fail_at:
        die(step)
    time.sleep(options.step_s)
    step += 1
    if stages is not None and node_rank == 0:
        with stages.open("a") as file:
            file.write(json.dumps({"stage": "firstStep", "at": time.monotonic()}) + "\n")
        stages = None
    if step % 5 == 0:
        save(step)
    tell(step, "training")
save(step)
tell(step, "finished")
