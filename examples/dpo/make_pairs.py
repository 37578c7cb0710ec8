"""Writes a small preference set about the Python standard library: which of two sentences is about the asked object?

Questions and sentences are the quickstart's: docstrings of the library. The better answer is the object's own sentence,
the worse one that of another object of the same module, which is some other question's better answer. So no sentence is
better or worse by itself, and what is learned is which answer belongs to a question. Held-out pairs are about other
objects, with other sentences, than the pairs trained on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

QUICKSTART = Path(__file__).parents[1] / "quickstart"
sys.path.insert(0, str(QUICKSTART))

from make_data import Entry, messages, order, unique_entries  # noqa: E402
from place import data_directory  # noqa: E402

MOST_WORDS = 16


def main() -> None:
    """Writes pairs.jsonl and held-out.jsonl."""
    parser = argparse.ArgumentParser(description="Write the pairs of examples/dpo.")
    parser.add_argument("--output", type=Path, default=data_directory(), help="folder for the two files")
    parser.add_argument("--train", type=int, default=320, help="pairs to train on")
    parser.add_argument("--held-out", type=int, default=64, help="pairs to evaluate")
    args = parser.parse_args()
    short = [entry for entry in unique_entries() if len(entry.summary.split()) <= MOST_WORDS]
    entries = sorted(short, key=order)
    args.output.mkdir(parents=True, exist_ok=True)
    cut = len(entries) // 4
    for name, part, count in (("held-out", entries[:cut], args.held_out), ("pairs", entries[cut:], args.train)):
        rows = pairs(part)[:count]
        if len(rows) < count:
            raise SystemExit(f"the standard library gives only {len(rows)} pairs; ask for fewer")
        path = args.output / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(f"{len(rows)} pairs written: {path}")


def pairs(entries: list[Entry]) -> list[dict[str, object]]:
    """A row for each object of a module that has others: each sentence is once the better and once the worse answer."""
    modules: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        modules[entry.name.split(".")[0]].append(entry)
    worse = {
        entry.name: others[(place + 1) % len(others)].summary
        for others in modules.values()
        if len(others) > 1
        for place, entry in enumerate(others)
    }
    return [
        {"messages": messages(entry), "rejected_response": worse[entry.name]}
        for entry in entries
        if entry.name in worse
    ]


if __name__ == "__main__":
    main()
