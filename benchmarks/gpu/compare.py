"""What the GPU runs measured: python3 compare.py RUNS_FOLDER, or --tests TESTS.xml, or --speed RUN_FOLDER

RUNS_FOLDER: losses of the same run on GPU and CPU, side by side. TESTS.xml: what each test of tests/gpu recorded.
RUN_FOLDER: medians of the steps after the sixth.
"""

import json
import statistics
import sys
from pathlib import Path
from xml.etree import ElementTree

WARM_UP_STEPS = 6


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


def show_speed(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "logging.jsonl").read_text().splitlines()]
    warm = [line for line in lines if "tokens_per_second_per_gpu" in line and line["iteration"] > WARM_UP_STEPS]
    names = {"tokens/s": "tokens_per_second_per_gpu", "mfu": "mfu", "step_s": "elapsed_time_per_iteration"}
    medians = (f"{name}={statistics.median(line[key] for line in warm):.6g}" for name, key in names.items())
    print(run.name, *medians, f"peak_gib={max(line['memory(GiB)'] for line in warm):.1f}", f"intervals={len(warm)}")


if sys.argv[1] == "--tests":
    list_tests(Path(sys.argv[2]))
elif sys.argv[1] == "--speed":
    show_speed(Path(sys.argv[2]))
else:
    compare_runs(Path(sys.argv[1]))
