"""Measures every family in every layout against transformers and writes docs/numerics.md.

    python benchmarks/numerics.py [MODEL ...]

With models, their columns alone are measured; the others stay as the page has them. The same cases as
tests/megatron_trainer/test_models_parity.py, which hold each difference to 1e-4.
"""

from __future__ import annotations

import datetime
import platform
import re
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "trainer")]

from tests.support.models import (
    layouts,
    tiny_model,
)
from tests.support.ranks import parity
from tests.support.ranks.pool import gloo_ranks

HEAD = """# Numerics

Written by `python benchmarks/numerics.py`; do not edit.

How far a loaded model is from transformers' own, in float32 on the CPU backend: tiny random models (4 layers, hidden
size 64, every norm away from one and every bias away from zero), two micro-batches of a row of 96 tokens. A cell shows
the largest absolute difference of logits (which are of size 1 to 10) and the largest difference of any weight's
gradient relative to the largest element of that gradient, over all ranks. Every case also exports the model, bit by bit
as it was loaded, and has the same gradient, bit by bit, on all ranks that hold a copy of a parameter. tp, pp, cp, ep,
etp are the parallel sizes, sp sequence parallelism, vpp virtual stages; packed rows hold several sequences.

"""


BOUND = 1e-4
"""What every cell is held to, as in the tests."""
PAGE = ROOT / "docs" / "numerics.md"
DATE = "measured"
"""The row of each table that says when a column was measured."""
DENSE = dict.fromkeys(sorted(tiny_model.MODELS.keys() - tiny_model.EXPERT_MODELS), ("tp1", *layouts.DENSE))
EXPERTS = dict.fromkeys(sorted(tiny_model.EXPERT_MODELS), ("tp1", *layouts.EXPERTS))
"""Model -> its layouts, the rows of its column."""
Cells = dict[tuple[str, str], str]
"""(model, layout) -> what the page says."""


def main() -> int:
    """Measures the models one after the other and writes the page after each; 1 when a case is out of bounds."""
    asked = sys.argv[1:] or [*DENSE, *EXPERTS]
    if unknown := set(asked) - {*DENSE, *EXPERTS}:
        sys.exit(f"no tiny model is called {', '.join(sorted(unknown))}; known are {', '.join([*DENSE, *EXPERTS])}")
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "megatron-core", "transformers"))
    cells = known_cells(packages) if sys.argv[1:] else {}
    with tempfile.TemporaryDirectory() as folder:
        for name in asked:
            of_model = {text: cell(name, text, Path(folder)) for text in (DENSE.get(name) or EXPERTS[name])}
            cells |= {(name, text): found for text, found in of_model.items()}
            cells[name, DATE] = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
            print(name, of_model, flush=True)
            PAGE.write_text(page(cells, packages))
    return int("**" in "".join(cells.values()))


def page(cells: Cells, packages: str) -> str:
    """The whole page; a cell that was never measured says so."""
    largest = max(float(number) for found in cells.values() for number in re.findall(r"\d\.\de-\d\d", found))
    broken = sum("**" in found for found in cells.values())
    facts = (
        f"Measured on {platform.machine()} with {packages}. Largest difference of all: {largest:.1e}; "
        f"{broken} cases beyond {BOUND:.0e}.\n\n"
    )
    parts = (table("Dense families", DENSE, cells), table("Families of experts", EXPERTS, cells))
    return HEAD + facts + "\n".join(parts)


def known_cells(packages: str) -> Cells:
    """The cells of the page as it is. Ends the program where they were measured with other packages."""
    text = PAGE.read_text()
    if packages not in text:
        sys.exit(f"the page was measured with other packages than {packages}: measure all models")
    cells: Cells = {}
    names: list[str] = []
    for line in text.splitlines():
        first, *others = [cell.strip() for cell in line.strip("| ").split("|")]
        if first == "layout":
            names = others
        elif line.startswith("| "):
            cells |= {(name, first): found for name, found in zip(names, others, strict=True)}
    return cells


def table(title: str, models: Mapping[str, tuple[str, ...]], cells: Cells) -> str:
    """A Markdown table: one row a layout, one column a model."""
    lines = [f"## {title}", "", f"| layout | {' | '.join(models)} |", "|---" * (len(models) + 1) + "|"]
    for text in (*next(iter(models.values())), DATE):
        lines.append(f"| {text} | {' | '.join(cells.get((name, text), 'not measured') for name in models)} |")
    return "\n".join(lines) + "\n"


def cell(name: str, text: str, folder: Path) -> str:
    """Logits and gradients of one case; in bold where they, the export or the copies on other ranks are not right."""
    chosen = layouts.read(text)
    if layouts.is_refused(name, chosen):
        return "refused"
    directory = tiny_model.make(name, folder)
    parity.make_reference(directory, packed=chosen["packed"])
    found = gloo_ranks(layouts.num_ranks(chosen["arguments"])).run(
        parity.compare,
        directory,
        chosen["arguments"],
        packed=chosen["packed"],
        virtual_stages=chosen["virtual"],
    )[0]
    numbers = f"{found.logits:.1e} {found.gradients:.1e}"
    if found.changed or found.no_gradient or found.replicated or max(found.logits, found.gradients) > BOUND:
        print(name, text, found, flush=True)
        return f"**{numbers}**"
    return numbers


if __name__ == "__main__":
    sys.exit(main())
