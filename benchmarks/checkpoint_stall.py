"""How long training stalls for a checkpoint, saved synchronously and in the background.

    python benchmarks/checkpoint_stall.py --folder DIR [--layers 8] [--hidden 1024] [--dtype float32] [--rows 4]

Trains a random Llama on one rank (a GPU where there is one) through the program itself, saves every fourth of twelve
steps, and prints a Markdown table: the stall of each save, the time of a step alone and of one beside a save. Beside
them the rate at which the same folder takes the same bytes when nothing else is done, and what verifying costs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = [str(ROOT / part) for part in ("trainer", ".")]
sys.path[:0] = PARTS

from megatron_trainjob.checkpoint_folder import checkpoints, damage
from tests.support.models import tiny_model
from tests.support.ranks import tiny_run

STEPS, INTERVAL = 12, 4
BLOCK_BYTES = 16 * 1024**2


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Seconds. stalls: of the saves inside the run (the last one, at its end, is waited for in any case)."""

    stalls: tuple[float, ...]
    step_alone: float
    step_beside: float
    total: float


def main() -> None:
    """Runs both ways and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rows", type=int, default=4, help="samples a step")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        model = tiny_model.make(
            "llama",
            folder,
            dtype=options.dtype,
            num_hidden_layers=options.layers,
            hidden_size=options.hidden,
            intermediate_size=options.hidden * 4,
        )
        data = tiny_run.write_data(folder / "train.jsonl", rows=64)
        runs = {
            kind: train(model, data, folder / kind, options, async_save=kind == "async") for kind in ("sync", "async")
        }
        newest = checkpoints(folder / "async")[0]
        assert newest.manifest is not None, newest.problem
        write_s = raw_write(folder / "raw", newest.manifest.size_bytes)
        started = time.monotonic()
        assert not list(damage(newest.path, newest.manifest, newest.manifest.files, with_contents=True))
        show(runs, newest.manifest.size_bytes, write_s, time.monotonic() - started)


def train(model: Path, data: Path, save: Path, options: argparse.Namespace, *, async_save: bool) -> Measured:
    """One run of the program."""
    given = tiny_run.arguments(
        model, data, save, train_iters=STEPS, save_interval=INTERVAL, global_batch_size=options.rows
    )
    given |= {"torch_dtype": options.dtype, "async_save": async_save, "save_total_limit": 1, "lr": 1e-5}
    config = save.with_suffix(".json")
    config.write_text(json.dumps(given))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*PARTS, os.environ.get("PYTHONPATH", "")]),
        "NPROC_PER_NODE": "1",
        "MTJ_TERMINATION_LOG": str(save.with_suffix(".failure")),
    }
    command = [sys.executable, "-m", "megatron_trainer", "sft", "--config", str(config)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = [json.loads(line) for line in (save / "logging.jsonl").read_text().splitlines()]
    steps = {row["iteration"]: row["elapsed_time_per_iteration"] for row in rows if "lm loss" in row}
    stalls = {row["iteration"]: row["checkpoint_seconds"] for row in rows if "checkpoint" in row}
    return Measured(
        stalls=tuple(stalls[iteration] for iteration in (INTERVAL, 2 * INTERVAL)),
        step_alone=statistics.median(steps[iteration] for iteration in range(2, INTERVAL + 1)),
        step_beside=statistics.median(steps[INTERVAL * save + 1] for save in (1, 2)),
        total=max(row["elapsed_s"] for row in rows if "elapsed_s" in row),
    )


def raw_write(path: Path, size_bytes: int) -> float:
    """Seconds to write so many bytes into one file and make them durable."""
    block = os.urandom(BLOCK_BYTES)
    started = time.monotonic()
    with path.open("wb", buffering=0) as file:
        for _ in range(size_bytes // BLOCK_BYTES):
            file.write(block)
        os.fsync(file.fileno())
    return time.monotonic() - started


def show(runs: dict[str, Measured], size_bytes: int, write_s: float, verify_s: float) -> None:
    """Prints the table."""
    lines = [
        "| save | stall of each save, s | step alone, s | step right after the save began, s | twelve steps, s |",
        "|---|---|---|---|---|",
    ]
    for kind, run in runs.items():
        stalls = ", ".join(f"{stall:.2f}" for stall in run.stalls)
        lines.append(f"| {kind} | {stalls} | {run.step_alone:.2f} | {run.step_beside:.2f} | {run.total:.1f} |")
    gigabytes = size_bytes / 1e9
    lines += [
        "",
        f"State: {gigabytes:.2f} GB. Raw write with fsync: {write_s:.2f} s ({gigabytes / write_s:.2f} GB/s). "
        f"Reading and comparing all checksums (page cache): {verify_s:.2f} s ({gigabytes / verify_s:.2f} GB/s).",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
