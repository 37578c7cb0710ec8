"""Everything that needs two, four or eight cards of one machine, in one go of twenty minutes.

    python benchmarks/gpu/several_cards.py OUT [--minutes 20] [--only REGEX] [--data DATA.jsonl] [--tokenizer DIR]
    python benchmarks/gpu/several_cards.py OUT --cpu [--cards 4] [--only REGEX]

- curves: losses of tiny models in combined layouts, full and LoRA, float32 and bfloat16, against one card
- checkpoints: a training that is stopped and goes on in another layout, on another number of cards
- kills: seconds from SIGKILL of a rank to the next step, by phase (benchmarks/recovery.py)
- speeds: real shapes with random weights beside megatron-core alone, and the plan's memory beside the peak

OUT/several-cards-DATE.md is written after every case. A case that fails is a row with its reason; the next one runs.
With --cpu the first three run with gloo ranks on this machine's processors. OUT must not hold an earlier go.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty, SimpleQueue

ROOT = Path(__file__).resolve().parents[2]
PARTS = [str(ROOT / part) for part in ("trainer", "operator", ".")]
sys.path[:0] = PARTS

import card_cases
import card_speeds
from card_cases import Chain, Curve, Speed
from card_ranks import Cards, TrainingFailed
from card_speeds import SpeedFailed

from tests.support.models import layouts, tiny_model
from tests.support.ranks import tiny_run

GLOBAL_BATCH = 8
CURVE_LIMIT_S = 120.0
FIRST_LIMIT_S = 300.0
"""Of a training on cards whose processes have to import everything first, or on a CPU with more ranks than cores."""
KILLS_LIMIT_S = 240.0
HEADS = {
    "curves": ("case", "cards", "first loss", "last loss", "largest relative difference", "as one card", "s"),
    "checkpoints": ("case", "steps", "largest relative difference from one card, undisturbed", "the same", "s"),
    "kills": ("case", "seconds"),
    "speeds": (
        *("case", "cards", "layers", "tokens/s a card", "MFU", "megatron-core alone", "share"),
        *("peak GiB", "plan GiB", "wanted", "s"),
    ),
}
"""Section -> columns of its table."""


@dataclass(kw_only=True)
class Go:
    """One go of this program: its folder, its time, and the rows so far."""

    folder: Path
    num_cards: int
    is_cpu: bool
    card_name: str
    card_bytes: int
    until: float
    only: re.Pattern[str]
    rows: dict[str, list[tuple[str, ...]]] = field(default_factory=lambda: {section: [] for section in HEADS})
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def steps(self) -> int:
        """Of a loss curve."""
        return 3 if self.is_cpu else 10

    @property
    def table(self) -> Path:
        """The file that is left."""
        return self.folder / f"several-cards-{datetime.now(UTC):%Y-%m-%d}.md"

    def wants(self, section: str, name: str) -> bool:
        """Whether --only names it and there is time; a case without time is a row that says so."""
        if not self.only.search(f"{section} {name}"):
            return False
        if time.monotonic() > self.until:
            self.add(section, name, "not run: the time was over")
            return False
        return True

    def add(self, section: str, *cells: object) -> None:
        """One more row, on the terminal and in the file."""
        row = tuple(f"{cell:.4g}" if isinstance(cell, float) else str(cell).replace("|", "/") for cell in cells)
        with self.lock:
            self.rows[section].append(row)
            print(f"[{max(0.0, self.until - time.monotonic()):5.0f} s left] {section}:", *row, sep="  ", flush=True)
            aside = self.table.with_suffix(".tmp")
            aside.write_text(self.text())
            aside.replace(self.table)

    def run(self, section: str, name: str, case: Callable[[], None]) -> None:
        """Runs a case; whatever it raises is a row."""
        try:
            case()
        except Exception as problem:  # noqa: BLE001 - the next case runs all the same
            kind = "" if isinstance(problem, TrainingFailed | SpeedFailed) else f"{type(problem).__name__}: "
            self.add(section, name, f"FAILED: {kind}{' '.join(str(problem).split())[:300]}")

    def text(self) -> str:
        """The Markdown file."""
        date = f"{datetime.now(UTC):%d %B %Y}".lstrip("0")
        lines = [f"# {self.num_cards} x {self.card_name}, {date}", "", f"    {' '.join(['python', *sys.argv])}", ""]
        lines += [f"Load of the machine: {os.getloadavg()[0]:.1f}; {versions()}."]
        for section, rows in self.rows.items():
            if rows:
                heads = HEADS[section]
                lines += ["", f"## {section.capitalize()}", "", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
                lines += [f"| {' | '.join(row)}{' |' * (1 + len(heads) - len(row))}" for row in rows]
        return "\n".join(lines) + "\n"


def versions() -> str:
    """Of the libraries that the numbers depend on."""
    from importlib import metadata

    found = []
    for name in ("torch", "megatron-core", "transformer-engine"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def in_lanes[Case](cases: Sequence[Case], num_cards: int, size: int, run: Callable[[Case, list[int]], None]) -> None:
    """Runs cases of `size` cards side by side on all cards."""
    waiting: SimpleQueue[Case] = SimpleQueue()
    for case in cases:
        waiting.put(case)

    def lane(first: int) -> None:
        cards = list(range(first, first + size))
        with contextlib.suppress(Empty):
            while True:
                run(waiting.get_nowait(), cards)

    with ThreadPoolExecutor(num_cards // size) as pool:
        for done in [pool.submit(lane, first) for first in range(0, num_cards - size + 1, size)]:
            done.result()


@dataclass(kw_only=True)
class Trainings:
    """Tiny trainings on the cards; losses of those that ended, by name."""

    go: Go
    cards: Cards
    data: Path
    losses: dict[str, list[float]] = field(default_factory=dict)
    models: dict[str, Path] = field(init=False)

    def __post_init__(self) -> None:
        """Writes the models, which trainings side by side share."""
        self.models = {
            name: tiny_model.make(name, self.go.folder, **shape) for name, shape in layouts.LARGE_MODELS.items()
        }

    def train(
        self, model: str, save: Path, cards: Sequence[int], *, steps: int, stop_at: int | None = None, **given: object
    ) -> list[float]:
        """Losses of all steps so far. Raises TrainingFailed."""
        common = {"train_iters": steps, "global_batch_size": GLOBAL_BATCH, "dataloader_type": "single"}
        arguments = tiny_run.arguments(self.models[model], self.data, save, **common, **given)
        is_first = self.go.is_cpu or any(card not in self.cards.ranks for card in cards)
        limit_s = FIRST_LIMIT_S if is_first else CURVE_LIMIT_S
        return self.cards.train(cards, arguments, limit_s=limit_s, stop_at=stop_at).column("lm loss")

    def curve(self, case: Curve, cards: list[int]) -> None:
        """One row: this layout beside one card, or why it failed."""
        self.go.run("curves", case.name, lambda: self._curve(case, cards))

    def chain(self, case: Chain) -> None:
        """One row: the losses of all parts beside those of one card that was left alone, or why it failed."""
        self.go.run("checkpoints", case.name, lambda: self._chain(case))

    def _curve(self, case: Curve, cards: list[int]) -> None:
        if case.layout != "tp1" and not self.go.wants("curves", case.name):
            return
        if not self.go.is_cpu and "cp" in case.layout and case.dtype == "float32":
            self.go.add("curves", case.name, case.num_cards, "left out: no attention kernel for this in float32")
            return
        started = time.monotonic()
        save = self.go.folder / "runs" / case.name.replace(" ", "-")
        found = self.train(case.model, save, cards, steps=self.go.steps, no_save_optim=True, **case.arguments)
        self.losses[case.name] = found
        if case.layout == "tp1":
            return
        one = self.losses.get(case.name.removesuffix(case.layout) + "tp1")
        worst = difference(found, one)
        verdict = "?" if worst is None else "yes" if worst <= card_cases.DTYPES[case.dtype] else "NO"
        shown = "no run on one card" if worst is None else worst
        self.go.add(
            "curves", case.name, len(cards), found[0], found[-1], shown, verdict, f"{time.monotonic() - started:.0f}"
        )

    def _chain(self, case: Chain) -> None:
        if not self.go.wants("checkpoints", case.name):
            return
        started = time.monotonic()
        save = self.go.folder / "chains" / re.sub(r"\W+", "-", case.name)
        steps = 2 * len(case.layouts)
        tuner = card_cases.TUNERS[case.tuner]
        one = self.train(case.model, save.with_name(f"{save.name}-one"), [0], steps=steps, **tuner)
        for part, text in enumerate(case.layouts, start=1):
            arguments, size = layouts.of_run(text)
            stop_at = 2 * part if part < len(case.layouts) else None
            given = {**tuner, **arguments}
            found = self.train(case.model, save, list(range(size)), steps=steps, stop_at=stop_at, **given)
            if len(found) != 2 * part:
                raise TrainingFailed(f"{len(found)} steps after {text}, not {2 * part}")
        worst = difference(found, one)
        verdict = "yes" if worst is not None and worst <= card_cases.DTYPES["float32"] else "NO"
        self.go.add("checkpoints", case.name, steps, worst, verdict, f"{time.monotonic() - started:.0f}")


def difference(found: list[float], expected: list[float] | None) -> float | None:
    """The largest relative one; None where there is nothing to compare with."""
    if not expected or len(found) != len(expected):
        return None
    return max(abs(one - other) / abs(other) for one, other in zip(found, expected, strict=True))


def run_tiny(go: Go) -> None:
    """Curves, those of one card first, then checkpoints."""
    data = tiny_run.write_data(go.folder / "rows.jsonl", rows=20 * GLOBAL_BATCH)
    trainings = Trainings(go=go, cards=Cards(folder=go.folder, count=go.num_cards, is_cpu=go.is_cpu), data=data)
    try:
        wanted = [case for case in card_cases.curves(go.num_cards) if go.only.search(f"curves {case.name}")]
        needed = {(case.model, case.tuner, case.dtype) for case in wanted}
        ones = [case for case in card_cases.curves(go.num_cards) if case.layout == "tp1"]
        in_lanes(
            [case for case in ones if (case.model, case.tuner, case.dtype) in needed], go.num_cards, 1, trainings.curve
        )
        others = [case for case in wanted if case.layout != "tp1"]
        for size in sorted({case.num_cards for case in others}):
            in_lanes([case for case in others if case.num_cards == size], go.num_cards, size, trainings.curve)
        for chain in card_cases.chains(go.num_cards):
            trainings.chain(chain)
    finally:
        trainings.cards.end(range(go.num_cards))


def run_kills(go: Go) -> None:
    """The table of benchmarks/recovery.py, row by row."""
    if not go.wants("kills", "of a rank and of a launcher"):
        return
    folder = go.folder / "kills"
    folder.mkdir()
    program = str(ROOT / "benchmarks" / "recovery.py")
    sizes = ["--ranks", str(go.num_cards), "--kills", "1" if go.is_cpu else "2"]
    device = ["--device", "cpu"] if go.is_cpu else ["--layers", "8", "--hidden", "512"]
    ways = ["--ways", "in place"] if go.is_cpu else ["--ways", "in place", "in place, spawned", "new gang, spawned"]
    command = [sys.executable, program, "--folder", str(folder), *sizes, *device, *ways]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=KILLS_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        go.add("kills", "all", f"FAILED: it did not end within {KILLS_LIMIT_S:.0f} s")
        return
    (folder / "log").write_text(done.stdout + done.stderr)
    if done.returncode != 0:
        go.add("kills", "all", f"FAILED: {(done.stdout + done.stderr).strip().splitlines()[-1][:300]}")
        return
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("|")]
    for row in rows[2:]:
        go.add("kills", row[0], ", ".join(f"{head} {cell}" for head, cell in zip(rows[0][1:], row[1:], strict=True)))


def run_speeds(go: Go, data: Path | None, tokenizer: Path | None) -> None:
    """Each shape, and the same under megatron-core alone right after it."""
    inputs = go.folder / "inputs"
    inputs.mkdir()

    def run(case: Speed, folder: Path) -> None:
        started = time.monotonic()
        fitted = card_speeds.fitted(case, go.card_bytes)
        speed_row(go, fitted, started, *card_speeds.write_inputs(fitted, inputs, data, tokenizer), folder)

    for number, case in enumerate(card_cases.speeds(go.num_cards)):
        if go.wants("speeds", case.name):
            go.run("speeds", case.name, functools.partial(run, case, go.folder / f"speed-{number}"))


def speed_row(go: Go, case: Speed, started: float, model: Path, rows: Path, folder: Path) -> None:
    """Raises SpeedFailed where the trainer did not train; a reference that fails is a cell that says why."""
    found = card_speeds.measure(case, model, rows, folder)
    raw: float | str = "" if case.raw is None else "no time"
    if case.raw is not None and time.monotonic() < go.until:
        try:
            raw = card_speeds.measure_raw(case, model, folder / "raw.log")
        except SpeedFailed as problem:
            raw = f"FAILED: {problem}"
    speed = found.tokens_per_second_per_card
    go.add(
        "speeds",
        case.name,
        case.num_cards,
        found.depth,
        f"{speed:,.0f}",
        "" if found.mfu is None else f"{found.mfu:.3f}",
        f"{raw:,.0f}" if isinstance(raw, float) else raw,
        f"{speed / raw:.2f}" if isinstance(raw, float) else "",
        f"{found.peak_gib:.1f}",
        f"{found.planned_gib:.1f}",
        case.target,
        f"{time.monotonic() - started:.0f}",
    )


def cards_of_this_machine() -> list[tuple[str, int]]:
    """Name and bytes of each GPU, as the driver tells them."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().splitlines()
    return [(name.strip(), int(size) * 2**20) for name, size in (line.rsplit(",", 1) for line in lines)]


def main() -> None:
    """Runs every section; the exit code is 1 where a case failed or differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--cpu", action="store_true", help="gloo ranks on this machine's processors, without speeds")
    parser.add_argument("--cards", type=int, choices=(2, 4, 8), help="default: all GPUs, or 4 with --cpu")
    parser.add_argument("--minutes", type=float, default=20.0, help="no case starts later than this")
    parser.add_argument("--only", type=re.compile, default=re.compile(""), help="of sections and names of cases")
    parser.add_argument("--data", type=Path, help="conversations for the speeds; default: made-up texts")
    parser.add_argument("--tokenizer", type=Path, help="folder of the tokenizer for them; default: a tiny one")
    given = parser.parse_args()
    found = [("CPU", 0)] * (given.cards or 4) if given.cpu else cards_of_this_machine()
    count = given.cards or max(size for size in (0, 2, 4, 8) if size <= len(found))
    if not 0 < count <= len(found):
        raise SystemExit(f"{len(found)} GPUs found; this program needs 2, 4 or 8 (or --cpu)")
    given.out.mkdir(parents=True)
    paths = (*PARTS, str(Path(__file__).parent), os.environ.get("PYTHONPATH"))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    go = Go(
        folder=given.out.resolve(),
        num_cards=count,
        is_cpu=given.cpu,
        card_name=found[0][0],
        card_bytes=found[0][1],
        until=time.monotonic() + 60 * given.minutes,
        only=given.only,
    )
    run_tiny(go)
    run_kills(go)
    if not given.cpu:
        run_speeds(go, given.data, given.tokenizer)
    print(go.table)
    bad = [
        row for rows in go.rows.values() for row in rows if any(cell in ("NO", "?") or "FAILED" in cell for cell in row)
    ]
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
