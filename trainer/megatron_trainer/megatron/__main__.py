"""Writes the register into docs/moving-megatron-core.md, or lists what to review for a new megatron-core.

`python -m megatron_trainer.megatron --write` writes; without it, every symbol whose source changed is listed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from megatron_trainer.megatron.register import ALL_CHANGES, problem, table

PAGE = Path("docs/moving-megatron-core.md")
BEGIN, END = "<!-- register: generated, do not edit -->\n", "<!-- end of register -->\n"


def main() -> int:
    """Returns 0 if every change matches the source it was written against, else 1 after listing the others."""
    if "--write" in sys.argv:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}{table()}{END}{rest.partition(END)[2]}", encoding="utf-8")
        return 0
    problems = [found for change in ALL_CHANGES for symbol in change.rests_on if (found := problem(change, symbol))]
    print("\n".join(problems) or f"all {len(ALL_CHANGES)} changes match the reviewed source")
    return 1 if problems else 0


sys.exit(main())
