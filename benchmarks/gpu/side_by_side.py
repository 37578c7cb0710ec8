"""Ours, megatron-core alone, ms-swift, transformers and TRL on one card, in one go: a table of their rates.

    python3 benchmarks/gpu/side_by_side.py OUT DATA.jsonl TOKENIZER_DIR [--only REGEX] [--minutes 14] [--readme]

Models have SmolLM2-1.7B's shape, or 16 experts of 2.5 billion parameters, random weights, and rows of 4,096 tokens:
`full rows` are cut to that length and hold one sample each; `packed` ones hold the conversations of DATA. Programs run
one after the other, none starts after --minutes, and OUT/side-by-side-DATE.md is written after each. --only takes the
cases whose name or program match. ms-swift's packages may lie in PEER_PATH, which only it sees; TRL needs trl and
datasets. --readme also writes the table into README.md, between its two marks.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import card_speeds
import one_card
import rows_swift
import torch
from card_cases import Speed
from card_speeds import SpeedFailed
from shapes import SHAPE

HERE = Path(__file__).parent
README = HERE.parents[1] / "README.md"
MARKS = ("<!-- side by side: benchmarks/gpu/side_by_side.py --readme replaces it -->", "<!-- end of side by side -->")
LIMIT_S = 150
HEAD = ("case", "program", "tokens/s", "ours to it", "peak GiB")


@dataclass(frozen=True)
class Rate:
    """What a program reached; peak_gib None where it does not say."""

    tokens_per_second: float
    peak_gib: float | None = None


@dataclass(frozen=True)
class Row:
    """A line of the table: a rate, or why there is none."""

    case: str
    program: str
    found: Rate | str


Measure = Callable[[argparse.Namespace], Rate]


def programs() -> Iterator[tuple[str, str, Measure]]:
    """Case, program and how it is measured; ours comes first in each case."""
    known = {each.name: each for each in one_card.cases()}
    full_rows = {"full rows": "rows", "full rows, FP8": "rows-fp8", "experts, full rows": "experts-rows"}
    for case, name in full_rows.items():
        yield case, "ours", _ours(known[name], on_full_rows=True)
        yield case, "megatron-core alone", _raw(known[name])
    for case, name in (("packed", "full"), ("packed, LoRA", "lora")):
        yield case, "ours", _ours(known[name], on_full_rows=False)
        yield case, "ms-swift", _swift(name)
    yield "packed, LoRA", "transformers and peft, full rows", _transformers("--lora")
    yield "full rows", "transformers, compiled", _transformers("--compile")
    yield "DPO", "ours and TRL", _preference


def main() -> int:
    given = _options()
    given.out.mkdir(parents=True)
    until = time.monotonic() + 60 * given.minutes
    rows: list[Row] = []
    for case, program, measure in programs():
        if not re.search(given.only, f"{case}: {program}"):
            continue
        rows.append(Row(case, program, _measured(measure, given, is_late=time.monotonic() > until)))
        print(f"{case}: {program}: {rows[-1].found}", flush=True)
        _write(given, rows)
    if given.readme:
        _write_readme([row for row in rows if isinstance(row.found, Rate)])
    return int(any(isinstance(row.found, str) for row in rows))


def _options() -> argparse.Namespace:
    known = argparse.ArgumentParser()
    for name in ("out", "data", "tokenizer"):
        known.add_argument(name, type=lambda text: Path(text).absolute())
    known.add_argument("--only", default="")
    known.add_argument("--minutes", type=float, default=14)
    known.add_argument("--readme", action="store_true")
    return known.parse_args()


def _measured(measure: Measure, given: argparse.Namespace, *, is_late: bool) -> Rate | str:
    if is_late:
        return "not started: the time was over"
    try:
        return measure(given)
    except (SpeedFailed, FileNotFoundError) as err:
        return f"failed: {err}"


def _inputs(case: Speed, given: argparse.Namespace) -> tuple[Path, Path]:
    """The folder of the model's shape, with the tokenizer, and rows that are all of full length."""
    folder = given.out / case.name
    if not folder.exists():
        folder.mkdir()
        return card_speeds.write_inputs(case, folder, given.data, given.tokenizer)
    return folder / re.sub(r"\W+", "-", case.name), folder / "rows-4096.jsonl"


def _ours(case: Speed, *, on_full_rows: bool) -> Measure:
    def measure(given: argparse.Namespace) -> Rate:
        model, rows = _inputs(case, given)
        found = card_speeds.measure(case, model, rows if on_full_rows else given.data, given.out / case.name / "ours")
        return Rate(found.tokens_per_second_per_card, found.peak_gib)

    return measure


def _raw(case: Speed) -> Measure:
    def measure(given: argparse.Namespace) -> Rate:
        log = given.out / case.name / "raw.log"
        rate = card_speeds.measure_raw(replace(case, limit_s=LIMIT_S), _inputs(case, given)[0], log)
        return Rate(rate, _peak(log))

    return measure


def _transformers(option: str) -> Measure:
    def measure(given: argparse.Namespace) -> Rate:
        model, _ = _inputs(replace(one_card.cases()[0], name="transformers", shape=SHAPE), given)
        log = given.out / f"transformers{option}.log"
        command = [sys.executable, str(HERE / "rows_transformers.py"), str(model), option]
        with card_speeds.running(command, log, {}, 1) as process:
            try:
                process.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                raise SpeedFailed(f"no result within {LIMIT_S} s") from None
        found = re.search(r"tokens/s=(\d+)", log.read_text(errors="replace"))
        if found is None:
            raise SpeedFailed(f"no result, see {log}")
        return Rate(int(found[1]), _peak(log))

    return measure


def _peak(log: Path) -> float | None:
    found = re.search(r"peak_gib=([\d.]+)", log.read_text(errors="replace"))
    return float(found[1]) if found else None


def _swift(kind: str) -> Measure:
    def measure(given: argparse.Namespace) -> Rate:
        model = rows_swift.make_model(SHAPE, given.tokenizer, given.out / "swift-model")
        found = rows_swift.measure(model, given.data, given.out / f"swift-{kind}", kind, 4, LIMIT_S)
        if isinstance(found, str):
            raise SpeedFailed(found)
        return Rate(found["tokens/s"], found["peak GiB"])

    return measure


def _preference(given: argparse.Namespace) -> Rate:
    """A table of its own, below this one."""
    command = [sys.executable, str(HERE / "preference.py"), str(given.out / "preference"), str(given.data)]
    options = ["--rows", "varied", "--steps", "14", "--cases", "trl fastest", "ours packed"]
    with (given.out / "preference.md").open("w") as output, (given.out / "preference.log").open("w") as log:
        done = subprocess.run(
            [*command, str(given.tokenizer), *options], stdout=output, stderr=log, timeout=420, check=False
        )
    print((given.out / "preference.md").read_text(), flush=True)
    if done.returncode:
        raise SpeedFailed(f"exit {done.returncode}, see {log.name}")
    best = re.findall(r"\| ours packed \| ([\d,]+) ", (given.out / "preference.md").read_text())
    if not best:
        raise SpeedFailed("no rate of ours")
    return Rate(float(best[0].replace(",", "")))


def table(rows: list[Row]) -> str:
    """In Markdown, our rate of each case divided by the others'."""
    ours = {row.case: row.found for row in rows if row.program == "ours"}
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    for row in rows:
        if isinstance(row.found, str):
            cells: tuple[str, ...] = (row.found, "", "")
        else:
            own, peak = ours.get(row.case), row.found.peak_gib
            is_other = isinstance(own, Rate) and row.program != "ours"
            ratio = f"{own.tokens_per_second / row.found.tokens_per_second:.2f}" if is_other else ""
            cells = (f"{row.found.tokens_per_second:,.0f}", ratio, "" if peak is None else f"{peak:.1f}")
        lines.append(f"| {' | '.join((row.case, row.program, *cells))} |")
    return "\n".join(lines)


def _write(given: argparse.Namespace, rows: list[Row]) -> None:
    parts = [f"# {_title()}", table(rows)]
    preference = given.out / "preference.md"
    parts += [preference.read_text().strip()] if preference.exists() else []
    (given.out / f"side-by-side-{datetime.now(UTC).date()}.md").write_text("\n\n".join(parts) + "\n")


def _title() -> str:
    return f"Side by side on one {torch.cuda.get_device_name()}, {datetime.now(UTC):%d %B %Y}"


def _write_readme(rows: list[Row]) -> None:
    before, rest = README.read_text().split(MARKS[0], 1)
    parts = (f"{before}{MARKS[0]}", f"{_title()}:", table(rows), f"{MARKS[1]}{rest.split(MARKS[1], 1)[1]}")
    README.write_text("\n\n".join(parts))


if __name__ == "__main__":
    sys.exit(main())
