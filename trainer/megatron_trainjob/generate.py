"""Writes the generated pages of docs/: `python -m megatron_trainjob.generate [--check] [FOLDER]`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from megatron_trainjob.args.document import count_by_status
from megatron_trainjob.args.document import document as arguments
from megatron_trainjob.families.document import document as families

DEFAULT_FOLDER = Path("docs")
PAGES: Mapping[str, Callable[[], str]] = {"arguments.md": arguments, "families.md": families}


def main(argv: Sequence[str]) -> int:
    """Writes the pages, or with --check only compares them (1 if one is stale); prints the count per status."""
    folder = next((Path(word) for word in argv if not word.startswith("-")), DEFAULT_FOLDER)
    stale = [name for name, page in PAGES.items() if _text(folder / name) != page()]
    if "--check" in argv and stale:
        names = " and ".join(str(folder / name) for name in stale)
        sys.stderr.write(f"{names} out of date; run python -m megatron_trainjob.generate\n")
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    for name in stale:
        (folder / name).write_text(PAGES[name](), encoding="utf-8")
    counts = ", ".join(f"{status}: {count}" for status, count in count_by_status().items())
    sys.stdout.write(f"arguments by status: {counts}\n")
    return 0


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
