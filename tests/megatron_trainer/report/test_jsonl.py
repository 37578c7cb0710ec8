"""logging.jsonl, as another program reads it."""

import contextlib
import json
import math
from itertools import pairwise

import pytest

from megatron_trainer.report import CheckpointRecord
from megatron_trainer.report.jsonl import STEP_KEYS, Jsonl, log_row, losses_in, read_rows
from tests.support.data.report_records import evaluation, log_record, run_info


def sink(path, **changes):
    return Jsonl(path, interval=1, **{"log_throughput": False, **changes})


def test_a_logged_step_has_the_keys_of_the_reference(tmp_path):
    sink(tmp_path / "logging.jsonl").write(log_record(params_norm=88.5))
    row = json.loads((tmp_path / "logging.jsonl").read_text())
    expected = {
        "global_step/max_steps": "5/206",
        "lm loss": 1.180399,
        "grad_norm": 1.105,
        "params_norm": 88.5,
        "learning_rate": 4.854369e-06,
        "elapsed_time_per_iteration": 0.9501,
        "memory(GiB)": 61.2,
        "elapsed_time": "5s",
        "remaining_time": "3m 21s",
        "loss_scale": 1.0,
        "consumed_samples": 320,
    }
    assert {name: row[name] for name in expected} == expected
    assert (row["iteration"], row["tokens_per_second"], row["time"]) == (5, 2105.0, "2026-11-24T06:00:00+00:00")


def test_throughput_is_kept_only_when_asked_for():
    record = log_record(tflops_per_gpu=412.0)
    assert log_row(record, log_throughput=True)["throughput"] == 412.0
    assert "throughput" not in log_row(record, log_throughput=False)


def test_evaluations_and_checkpoints_have_rows_of_their_own(tmp_path):
    jsonl = sink(tmp_path / "logging.jsonl")
    jsonl.write(evaluation(10, 2.5))
    jsonl.write(CheckpointRecord(iteration=10, path="/out/iter_0000010", seconds=1.25))
    first, second = read_rows(tmp_path / "logging.jsonl")
    assert (first["iteration"], first["eval_lm loss"], first["eval_samples"]) == (10, 2.5, 48)
    assert second == {"iteration": 10, "checkpoint": "/out/iter_0000010", "checkpoint_seconds": 1.25}


def test_a_resumed_run_drops_what_it_will_write_again(tmp_path):
    path = tmp_path / "logging.jsonl"
    jsonl = sink(path)
    for iteration in (1, 2, 3, 4):
        jsonl.write(log_record(iteration=iteration))
    jsonl.write(evaluation(4))
    sink(path).write(run_info(start_iteration=2))
    assert [row["iteration"] for row in read_rows(path)] == [1, 2]


def test_a_fresh_run_in_an_old_folder_starts_an_empty_file(tmp_path):
    path = tmp_path / "logging.jsonl"
    sink(path).write(log_record())
    sink(path).write(run_info(start_iteration=0))
    assert path.read_text() == ""


def test_a_line_that_a_killed_run_left_unfinished_is_dropped(tmp_path):
    path = tmp_path / "logging.jsonl"
    sink(path).write(log_record(iteration=1))
    with path.open("a") as stream:
        stream.write('{"iteration": 2, "lm lo')
    jsonl = sink(path)
    jsonl.write(run_info(start_iteration=5))
    jsonl.write(log_record(iteration=6))
    assert [json.loads(line)["iteration"] for line in path.read_text().splitlines()] == [1, 6]


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path):
    sink(tmp_path / "logging.jsonl").write(log_record(losses={"lm loss": math.nan}, gradient_norm=math.inf))
    row = json.loads((tmp_path / "logging.jsonl").read_text(), parse_constant=lambda text: 1 / 0)
    assert (row["lm loss"], row["grad_norm"]) == ("NaN", "Infinity")


def test_losses_are_distinguished_from_keys_of_every_step():
    everything = log_record(
        losses={"lm loss": 1.0, "loss_code": 2.0},
        params_norm=1.0,
        num_zeros_in_gradient=1.0,
        tflops_per_gpu=1.0,
        utilization=0.5,
    )
    row = log_row(everything, log_throughput=True)
    assert row.keys() - STEP_KEYS == {"lm loss", "loss_code"}
    assert losses_in(row) == {"lm loss": 1.0, "loss_code": 2.0}


def test_a_long_log_is_read_as_a_bounded_choice_of_rows_with_all_tokens_and_both_ends(tmp_path):
    path, num_steps = tmp_path / "logging.jsonl", 20_000
    with path.open("w") as file:
        for step in range(1, num_steps + 1):
            file.write(json.dumps({"iteration": step, "learning_rate": 0.1, "tokens": 3, "loss": 1.0}) + "\n")
            if step % 4 == 0:
                file.write(json.dumps({"iteration": step, "eval_loss": 1.0}) + "\n")
    rows = read_rows(path, at_most=100)
    steps = [row for row in rows if "learning_rate" in row]
    others = [row for row in rows if "eval_loss" in row]
    assert 100 <= len(steps) <= 201
    assert 100 <= len(others) <= 201
    assert sum(row["tokens"] for row in steps) == 3 * num_steps
    assert [row["iteration"] for row in rows] == sorted(row["iteration"] for row in rows)
    assert (rows[0]["iteration"], rows[-1]["iteration"]) == (1, num_steps)
    gaps = {b["iteration"] - a["iteration"] for a, b in pairwise(steps[1:-1])}
    assert len(gaps) == 1, "spread evenly"
    assert len(read_rows(path)) == num_steps + num_steps // 4


@pytest.mark.parametrize(("most_rows", "steps"), [(16, 40), (64, 5000), (1000, 5000)])
def test_a_bounded_log_keeps_rows_at_even_distances(tmp_path, most_rows, steps):
    log = sink(tmp_path / "logging.jsonl", most_rows=most_rows)
    most = 0
    for iteration in range(1, steps + 1):
        log.write(log_record(iteration=iteration, total_iterations=steps))
        if iteration % 10 == 0:
            log.write(CheckpointRecord(iteration=iteration, path="a", seconds=1.0))
        if iteration % 97 == 0 or iteration == steps:
            most = max(most, len((tmp_path / "logging.jsonl").read_text().splitlines()))
    log.close()
    rows = read_rows(tmp_path / "logging.jsonl")
    kept = [row["iteration"] for row in rows if "learning_rate" in row]
    assert (kept[0], kept[-1]) == (1, steps)
    assert most < most_rows
    assert max(later - earlier for earlier, later in pairwise(kept)) <= 16 * steps / most_rows
    assert {row["iteration"] for row in rows if "checkpoint" in row} >= {10, steps}


def test_a_bounded_log_keeps_evaluations_beside_checkpoints_of_the_same_steps(tmp_path):
    log = sink(tmp_path / "logging.jsonl", most_rows=400)
    for iteration in range(1, 1001):
        log.write(log_record(iteration=iteration, total_iterations=1000))
        if iteration % 10 == 0:
            log.write(evaluation(iteration, 2.5))
            log.write(CheckpointRecord(iteration=iteration, path="a", seconds=1.0))
    log.close()
    for rows in (read_rows(tmp_path / "logging.jsonl"), read_rows(tmp_path / "logging.jsonl", at_most=20)):
        evaluated, saved = ([row["iteration"] for row in rows if key in row] for key in ("eval_samples", "checkpoint"))
        assert len(evaluated) == len(saved) >= 20
        assert (evaluated[0], evaluated[-1]) == (10, 1000)


def test_a_log_that_was_taken_over_writes_nothing_more_into_its_successors_file(tmp_path):
    path, door = tmp_path / "logging.jsonl", tmp_path / "door"
    door.mkdir()
    log = sink(path, most_rows=16, door=door)
    for iteration in range(1, 15):
        log.write(log_record(iteration=iteration))
    door.rmdir()
    path.unlink()
    path.write_text("of the successor\n")
    for iteration in range(15, 20):
        with contextlib.suppress(OSError):
            log.write(log_record(iteration=iteration))
    log.close()
    assert path.read_text() == "of the successor\n"
