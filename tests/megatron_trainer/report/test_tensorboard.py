"""TensorBoard files, read back with TensorBoard's own reader."""

import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_trainer.report.tensorboard import Choices, TensorBoard
from tests.support.data.report_records import Clock, evaluation, log_record, run_info


def opened(folder, start_iteration=0, consumed_samples=0, **choices):
    sink = TensorBoard(folder, interval=1, queue_size=10, choices=Choices(**choices), now=Clock())
    sink.write(run_info(start_iteration=start_iteration, consumed_samples=consumed_samples))
    return sink


def scalars(folder):
    """{tag: [(step, value)]} of all files of the folder, as they are and without any purging."""
    reader = EventAccumulator(str(folder), purge_orphaned_data=False, size_guidance={"scalars": 0})
    reader.Reload()
    return {tag: [(e.step, pytest.approx(e.value)) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def test_a_logged_step_is_written_over_iterations_and_over_samples(tmp_path):
    sink = opened(tmp_path)
    sink.write(log_record(memory_bytes=2**30, timers_s={"forward-backward": 0.7}, params_norm=3.0))
    sink.close()
    expected = {
        "lm loss": 1.180399,
        "grad-norm": 1.105,
        "params-norm": 3.0,
        "loss-scale": 1.0,
        "batch-size": 64,
        "iteration-time": 0.9501,
        "learning-rate": 4.854369e-06,
        "tokens-per-second": 2105.0,
        "tokens-per-second-per-gpu": 1052.5,
        "mem-max-allocated-bytes": 2**30,
        "forward-backward-time": 0.7,
    }
    over_iterations = {tag: [(5, value)] for tag, value in expected.items()}
    over_samples = {f"{tag} vs samples": [(320, value)] for tag, value in expected.items()}
    assert scalars(tmp_path) == over_iterations | over_samples


@pytest.mark.parametrize(
    ("choice", "tag"),
    [
        ("learning_rate", "learning-rate"),
        ("memory", "mem-max-allocated-bytes"),
        ("timers", "forward-time"),
        ("throughput", "throughput"),
        ("validation_perplexity", "lm loss validation ppl"),
    ],
)
def test_an_optional_scalar_is_written_exactly_when_it_is_chosen(tmp_path, choice, tag):
    for folder, is_chosen in ((tmp_path / "on", True), (tmp_path / "off", False)):
        sink = opened(folder, **{choice: is_chosen})
        sink.write(log_record(timers_s={"forward": 0.5}, tflops_per_gpu=400.0))
        sink.write(evaluation(5))
        sink.close()
    assert scalars(tmp_path / "on").keys() - scalars(tmp_path / "off").keys() == {tag, f"{tag} vs samples"}


def test_an_evaluation_has_its_loss_and_perplexity(tmp_path):
    sink = opened(tmp_path)
    sink.write(evaluation(10, 2.0))
    sink.close()
    assert scalars(tmp_path) == {
        "lm loss validation": [(10, 2.0)],
        "lm loss validation ppl": [(10, math.exp(2.0))],
        "lm loss validation vs samples": [(160, 2.0)],
        "lm loss validation ppl vs samples": [(160, math.exp(2.0))],
    }


def test_a_resumed_run_continues_both_curves_without_duplicates(tmp_path):
    first = opened(tmp_path)
    for iteration in (1, 2, 3, 4):
        first.write(log_record(iteration=iteration, consumed_samples=16 * iteration, losses={"lm loss": 9.0}))
    first.close()
    second = opened(tmp_path, start_iteration=2, consumed_samples=32)
    for iteration in (3, 4, 5):
        second.write(log_record(iteration=iteration, consumed_samples=16 * iteration, losses={"lm loss": 1.0}))
    second.close()
    found = scalars(tmp_path)
    assert found["lm loss"] == [(1, 9.0), (2, 9.0), (3, 1.0), (4, 1.0), (5, 1.0)]
    assert found["lm loss vs samples"] == [(16, 9.0), (32, 9.0), (48, 1.0), (64, 1.0), (80, 1.0)]


def test_a_file_that_a_killed_run_left_cut_off_can_be_rewound(tmp_path):
    first = opened(tmp_path)
    for iteration in (1, 2, 3):
        first.write(log_record(iteration=iteration))
    first.close()
    [file] = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-7])
    opened(tmp_path, start_iteration=1, consumed_samples=10_000).close()
    assert [step for step, _ in scalars(tmp_path)["lm loss"]] == [1]


@pytest.mark.parametrize("damage", [b"\xff" * 8, b"\x00" * 40, b"\xff" * 200])
def test_a_damaged_file_can_be_rewound_and_keeps_what_is_before_the_damage(tmp_path, damage):
    first = opened(tmp_path)
    for iteration in (1, 2, 3):
        first.write(log_record(iteration=iteration))
    first.close()
    [file] = tmp_path.iterdir()
    whole = file.read_bytes()
    place = whole.index(b"grad-norm", whole.index(b"grad-norm") + 1000) - 60
    file.write_bytes(whole[:place] + damage + whole[place + len(damage) :])
    opened(tmp_path, start_iteration=2, consumed_samples=10_000).close()
    assert [step for step, _ in scalars(tmp_path).get("lm loss", [])][:1] == [1]


def test_a_file_without_rows_to_remove_stays_as_it_is(tmp_path):
    first = opened(tmp_path)
    first.write(log_record(iteration=1))
    first.close()
    [file] = tmp_path.iterdir()
    before = file.stat()
    opened(tmp_path, start_iteration=1, consumed_samples=10_000).close()
    assert file.stat().st_ino == before.st_ino
