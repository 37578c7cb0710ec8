"""Losses of the same run on GPU and CPU, side by side: python3 compare.py RUNS_FOLDER"""

import json
import sys
from pathlib import Path


def losses(folder: Path) -> list[float]:
    path = folder / "logging.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["lm loss"] for line in lines if "lm loss" in json.loads(line)]


for gpu in sorted(Path(sys.argv[1]).glob("*-cuda")):
    ours, reference = losses(gpu), losses(gpu.with_name(gpu.name.replace("-cuda", "-cpu")))
    largest = max((abs(a - b) for a, b in zip(ours, reference, strict=False)), default=None)
    print(f"{gpu.name}: {len(ours)} and {len(reference)} steps, largest difference of a loss {largest}")
    print("   gpu", [round(loss, 5) for loss in ours])
    print("   cpu", [round(loss, 5) for loss in reference])
