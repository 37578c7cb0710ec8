"""Runs of ours beside a peer's on one card: each a process of its own, its steps, and a table of their rates."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

WARM_UP_STEPS = 5


def call(command: list[str], environment: dict[str, str], log, timeout: int) -> int:
    """The exit code of a Python command, 124 where it ran out of time."""
    inherited = {"PYTORCH_ALLOC_CONF": "expandable_segments:True", **os.environ}
    try:
        done = subprocess.run(
            [sys.executable, *command],
            env=inherited | environment,
            stdout=log,
            stderr=log,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 124
    return done.returncode


def steps(log: Path, key: str) -> list[dict]:
    """The lines of steps in a logging.jsonl. key: what they, and no others, have beside their tokens."""
    return [line for line in map(json.loads, log.read_text().splitlines()) if "tokens" in line and key in line]


def rates(lines: list[dict]) -> dict[str, float]:
    """Tokens a second over the steps after the first ones, the tokens of such a step, peak memory."""
    warm = lines[min(WARM_UP_STEPS, len(lines) - 1) :]
    seconds, tokens = (sum(line[key] for line in warm) for key in ("elapsed_time_per_iteration", "tokens"))
    return {
        "tokens/s": tokens / seconds,
        "step s": seconds / len(warm),
        "tokens/step": tokens / len(warm),
        "peak GiB": max(line["memory(GiB)"] for line in warm),
        "steps": len(warm),
    }


def print_table(
    title: str, peer: str, ends: tuple[str, str], runs: Iterable[tuple[str, dict[str, float] | str]]
) -> None:
    """Each run's row as soon as it has ended.

    peer: how the names of the peer's runs begin; rates are divided by the best of those above. ends: the two values.
    """
    columns = ("", "tokens/s", f"of {peer}'s best", "step s", "tokens/step", "peak GiB", *ends, "steps")
    print(f"\n{title}\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
    best = 0.0
    for name, one in runs:
        if isinstance(one, str):
            print(f"| {name} | {one} |{' |' * 7}", flush=True)
            continue
        if name.startswith(peer):
            best = max(best, one["tokens/s"])
        values = (
            f"{one['tokens/s']:,.0f}",
            f"{one['tokens/s'] / best:.2f}" if best else "",
            f"{one['step s']:.3f}",
            f"{one['tokens/step']:,.0f}",
            f"{one['peak GiB']:.1f}",
            *(f"{one[each]:.4f}" for each in ends),
            str(one["steps"]),
        )
        print(f"| {name} | {' | '.join(values)} |", flush=True)
