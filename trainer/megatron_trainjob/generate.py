"""Writes docs/arguments.md: `python -m megatron_trainjob.generate [--check] [PATH]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_trainjob.args.document import count_by_status, document

DEFAULT_PATH = Path("docs/arguments.md")


def main(argv: Sequence[str]) -> int:
    """Writes the page, or with --check only compares it (1 when it is stale); tells the count per status."""
    path = next((Path(word) for word in argv if not word.startswith("-")), DEFAULT_PATH)
    text = document()
    if "--check" in argv:
        current = path.read_text(encoding="utf-8") if path.exists() else ""
        if current != text:
            sys.stderr.write(f"{path} is out of date; run python -m megatron_trainjob.generate\n")
            return 1
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    counts = ", ".join(f"{status}: {count}" for status, count in count_by_status().items())
    sys.stdout.write(f"arguments by status: {counts}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
