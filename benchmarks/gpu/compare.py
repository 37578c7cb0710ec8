"""Differences that the GPU runs measured: python3 compare.py RUNS_FOLDER, or --tests TESTS.xml

RUNS_FOLDER: losses of the same run on GPU and CPU, side by side. TESTS.xml: what each test of tests/gpu recorded.
"""

import json
import sys
from pathlib import Path
from xml.etree import ElementTree


def losses(folder: Path) -> list[float]:
    path = folder / "logging.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["lm loss"] for line in lines if "lm loss" in json.loads(line)]


def compare_runs(runs: Path) -> None:
    for gpu in sorted(runs.glob("*-cuda")):
        ours, reference = losses(gpu), losses(gpu.with_name(gpu.name.replace("-cuda", "-cpu")))
        largest = max((abs(a - b) for a, b in zip(ours, reference, strict=False)), default=None)
        print(f"{gpu.name}: {len(ours)} and {len(reference)} steps, largest difference of a loss {largest}")
        print("   gpu", [round(loss, 5) for loss in ours])
        print("   cpu", [round(loss, 5) for loss in reference])


def list_tests(report: Path) -> None:
    for case in ElementTree.parse(report).iter("testcase"):
        measured = {entry.get("name"): entry.get("value") for entry in case.iter("property")}
        if measured:
            print(case.get("name"), f"{float(case.get('time')):.1f}s", *(f"{k}={v}" for k, v in measured.items()))


if sys.argv[1] == "--tests":
    list_tests(Path(sys.argv[2]))
else:
    compare_runs(Path(sys.argv[1]))
