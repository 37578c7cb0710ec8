"""Writes the generated pages of docs/: `python -m megatron_trainjob.generate [--check] [FOLDER]`.

The README beside the folder has the count of arguments between two comments, which is written too.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from megatron_trainjob.args.document import count_by_status
from megatron_trainjob.args.document import document as arguments
from megatron_trainjob.families.document import document as families

DEFAULT_FOLDER = Path("docs")
_COUNTED = re.compile(r"(<!-- counted arguments -->)\n.*?\n(<!-- end -->)", re.DOTALL)
PAGES: Mapping[str, Callable[[str], str]] = {
    "arguments.md": lambda _: arguments(),
    "families.md": lambda _: families(),
    "../README.md": lambda text: _COUNTED.sub(lambda found: f"{found[1]}\n{_counts()}\n{found[2]}", text),
}
"""Paths from the folder -> the page, made from the one that is there."""


def main(argv: Sequence[str]) -> int:
    """Writes the pages, or with --check only compares them (1 if one is stale); prints the count per status."""
    folder = next((Path(word) for word in argv if not word.startswith("-")), DEFAULT_FOLDER)
    texts = {name: _text(folder / name) for name in PAGES}
    stale = {name: new for name, page in PAGES.items() if (new := page(texts[name])) != texts[name]}
    if "--check" in argv and stale:
        names = " and ".join(str(folder / name) for name in stale)
        sys.stderr.write(f"{names} out of date; run python -m megatron_trainjob.generate\n")
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in stale.items():
        (folder / name).write_text(text, encoding="utf-8")
    counts = ", ".join(f"{status}: {count}" for status, count in count_by_status().items())
    sys.stdout.write(f"arguments by status: {counts}\n")
    return 0


def _counts() -> str:
    """The sentence of the README about all arguments."""
    counts = count_by_status()
    works, on_gpu, idle, refused = (counts[name] for name in ("works", "works on GPU only", "no effect", "refused"))
    return (
        f"Of {sum(counts.values())} arguments {works} work, {on_gpu} more on GPUs, {idle} are accepted although\n"
        f"there is nothing for them to change here (a warning says so), and {refused} are refused with the reason\n"
        "([all arguments](docs/arguments.md))."
    )


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
