"""The program that measures on machines of several GPUs, as far as a machine without one can run it."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "gpu" / "several_cards.py"
GIB = 1024**3


@pytest.fixture
def program(monkeypatch):
    """Its module; it finds its own parts beside it."""
    monkeypatch.syspath_prepend(str(PROGRAM.parent))
    import several_cards

    return several_cards


@pytest.mark.parametrize("num_cards", [2, 4, 8])
def test_every_speed_has_arguments_that_the_trainer_takes_and_a_card_holds(program, num_cards):
    for case in program.card_cases.speeds(num_cards):
        fitted = program.card_speeds.fitted(case, 80 * GIB)
        planned = program.card_speeds.planned_bytes(fitted, fitted.shape)
        assert planned < 80 * GIB, case.name


@pytest.mark.parametrize(("num_cards", "sizes"), [(2, {1, 2}), (4, {1, 4}), (8, {1, 4, 8})])
def test_every_layout_has_a_run_on_one_card_to_be_compared_with(program, num_cards, sizes):
    curves = program.card_cases.curves(num_cards)
    names = {curve.name for curve in curves}
    assert {curve.num_cards for curve in curves} == sizes
    assert all(curve.name.removesuffix(curve.layout) + "tp1" in names for curve in curves)


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.timeout(600)
def test_two_ranks_of_the_cpu_leave_a_table_without_a_difference(tmp_path):
    out = tmp_path / "out"
    options = ["--cpu", "--cards", "2", "--only", "(curves|checkpoints) qwen3_moe full.*(float32|->)"]
    done = subprocess.run([sys.executable, str(PROGRAM), str(out), *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (table,) = out.glob("several-cards-*.md")
    rows = [line for line in table.read_text().splitlines() if line.startswith("| qwen3_moe")]
    assert len(rows) == 3 + 1
    assert all("| yes |" in row for row in rows)


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.timeout(600)
def test_a_case_that_fails_is_a_row_with_its_reason_and_the_next_one_runs(program, tmp_path):
    go = program.Go(
        folder=tmp_path,
        num_cards=2,
        is_cpu=True,
        card_name="CPU",
        card_bytes=0,
        until=time.monotonic() + 600,
        only=re.compile(""),
    )
    data = program.tiny_run.write_data(tmp_path / "rows.jsonl", rows=80)
    trainings = program.Trainings(go=go, cards=program.Cards(folder=tmp_path, count=2, is_cpu=True), data=data)
    case = {"model": "llama", "tuner": "full", "dtype": "float32"}
    layouts = ("tp1", "pp8", "pp2")  # a model of four layers has no eight stages
    try:
        for layout in layouts:
            cards = [0] if layout == "tp1" else [0, 1]
            trainings.curve(program.Curve(layout=layout, **case), cards)
    finally:
        trainings.cards.end(range(2))
    failed, right = go.rows["curves"]
    assert failed[0].endswith("pp8")
    assert "FAILED" in failed[1]
    assert "divisible" in failed[1]
    assert "yes" in right
    assert failed[1] in go.table.read_text()
