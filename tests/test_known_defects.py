"""docs/known-defects.md names tests that exist, at least one for every row."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROWS = [line for line in (ROOT / "docs" / "known-defects.md").read_text().splitlines() if line.startswith("| ")][1:]


def test_every_row_has_a_test_and_every_named_test_exists():
    written = {(path.name, name) for path in ROOT.glob("tests/**/test_*.py") for name in names_in(path)}
    named = [re.findall(r"`(test_\w+\.py)::(test_\w+)`", row) for row in ROWS]
    assert all(named)
    assert len(named) > 20
    assert {pair for row in named for pair in row} - written == set()


def names_in(path: Path) -> list[str]:
    return re.findall(r"^def (test_\w+)", path.read_text(), flags=re.MULTILINE)
