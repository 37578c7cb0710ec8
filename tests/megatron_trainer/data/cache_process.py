"""What the cache tests run in other processes: one entry built or found, and where it was built."""

import json
import sys
import time
from pathlib import Path


def build_slowly(folder: str, seconds: str, log: str) -> None:
    """Builds (or finds) the folder and prints what is in it; each build adds a line to the log."""
    from megatron_trainer.data.storage.cache import built_once

    def build(aside: Path) -> None:
        with open(log, "a") as stream:
            stream.write("built\n")
        aside.mkdir()
        (aside / "first").write_text("1")
        time.sleep(float(seconds))
        (aside / "second").write_text("2")

    found = built_once(Path(folder), build, dead_after_s=3)
    sys.stdout.write(json.dumps(sorted(path.name for path in found.iterdir() if path.name != "lengths.json")))


if __name__ == "__main__":
    sys.path[:0] = json.loads(sys.argv[1])
    build_slowly(*sys.argv[2:])
