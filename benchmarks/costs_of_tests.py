"""What tests cost in processor time, with their ranks and other processes: seconds on a busy machine say little.

    COSTS=DIR pytest -p benchmarks.costs_of_tests [-n 2 --dist loadfile] ...
    python benchmarks/costs_of_tests.py DIR [--most 30]

The first writes a line a test into DIR; the second prints the files and the tests that cost most.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import pytest

TICKS = os.sysconf("SC_CLK_TCK")


def spent_s() -> float:
    """Processor seconds of this process and everything below it so far, ended children included."""
    children: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        children.setdefault(int(fields[1]), []).append(int(folder.name))
        ticks[int(folder.name)] = sum(map(int, fields[11:15]))
    total, below = 0, [os.getpid()]
    while below:
        process = below.pop()
        total += ticks.get(process, 0)
        below += children.get(process, [])
    return total / TICKS


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Writes (test, processor seconds, seconds) after each test."""
    before, started = spent_s(), time.monotonic()
    outcome = yield
    row = [item.nodeid, round(spent_s() - before, 2), round(time.monotonic() - started, 2)]
    folder = Path(os.environ["COSTS"])
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{os.getpid()}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    return outcome


def main() -> None:
    """Prints the most expensive files and tests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--most", type=int, default=30)
    options = parser.parse_args()
    rows = [json.loads(line) for path in options.folder.glob("*.jsonl") for line in path.read_text().splitlines()]
    files: Counter[str] = Counter()
    for name, processor_s, _ in rows:
        files[name.split("::")[0]] += processor_s
    print(f"{len(rows)} tests, {sum(files.values()):.0f} s of processor time, {sum(row[2] for row in rows):.0f} s")
    for name, processor_s in files.most_common(options.most):
        print(f"{processor_s:8.1f}  {name}")
    for name, processor_s, wall_s in sorted(rows, key=lambda row: -max(row[1:]))[: options.most]:
        print(f"{processor_s:8.1f} of {wall_s:6.1f}  {name}")


if __name__ == "__main__":
    main()
