"""Shows what the quickstart's training did: held-out loss and one answer, before and after, and the run's files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from place import data_directory

if TYPE_CHECKING:
    from measure import Result


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Show what the quickstart's training did.")
    parser.add_argument("--data", type=Path, default=data_directory(), help="folder with model and validation.jsonl")
    parser.add_argument("--run", type=Path, help="folder of the run (default: quickstart in the data folder)")
    args = parser.parse_args()
    run: Path = args.run or args.data / "quickstart"
    if not (run / "adapter").is_dir():
        raise SystemExit(f"{run} holds no adapter: the training has not finished")
    from measure import measure  # imports torch: only when there is something to measure

    print_result(measure(args.data, run / "adapter"))
    print_files(run)


def print_result(result: Result) -> None:
    """Losses and answers, before and after."""
    before, after = result.before, result.after
    change = 100 * (after.loss / before.loss - 1)
    print(f"\nLoss on the {result.num_rows} held-out rows, measured with transformers and peft")
    print(f"  before   {before.loss:.4f}")
    print(f"  after    {after.loss:.4f}   ({change:+.1f} %)")
    print(f"\n{result.question}")
    print(f"  before   {before.answer}")
    print(f"  after    {after.answer}")
    print(f"  Python   {result.expected}")


def print_files(run: Path) -> None:
    """Where the run's outputs lie."""
    newest = max(run.glob("iter_*"), default=None)
    named = {"checkpoint": newest, "adapter": run / "adapter", "report": run / "report.html"}
    print()
    for name, path in named.items():
        if path is not None and path.exists():
            print(f"{name:<10} {path}")


if __name__ == "__main__":
    main()
