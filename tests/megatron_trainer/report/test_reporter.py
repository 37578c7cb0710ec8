"""A whole run through the Reporter and every sink, read back from its files."""

import json
import os

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_trainer.report import CheckpointRecord, FinishRecord, open_reporter
from megatron_trainer.report.jsonl import read_rows
from megatron_trainjob import progress
from megatron_trainjob.args.tree import TrainArgs
from tests.support.data.report_records import Clock, evaluation, run_info, step

LOSSES = [4.0, 3.1, 3.3, 2.7, 2.9, 2.45, 2.55, 2.3, 2.1, 2.25, 2.0, 1.9]
TIMES = ("elapsed_time", "remaining_time", "elapsed_s", "remaining_s", "time")


def opened(save, clock, rank=0, environment=None, **arguments):
    args = TrainArgs(**{"log_interval": 5, **arguments})
    save.mkdir(exist_ok=True)
    return open_reporter(args, save=save, rank=rank, environment=environment or {}, now=clock)


def train(reporter, clock, first, last, save=None):
    """Steps first..last, with an evaluation at 10 and a save after `save`."""
    for iteration in range(first, last + 1):
        clock.time += 4.0
        reporter.step(step(iteration, LOSSES[iteration - 1]))
        if iteration == 10:
            reporter.evaluation(evaluation(10))
        if iteration == save:
            reporter.phase("saving")
            reporter.checkpoint(CheckpointRecord(iteration=iteration, path=f"/out/{iteration}", seconds=1.0))
            reporter.phase("training")


def logged(save):
    rows = [row for row in read_rows(save / "logging.jsonl") if "checkpoint" not in row]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def in_a_process_that_ends(run):
    """Without a farewell: TensorBoard's thread, which writes in the background, ends with its process."""
    process = os.fork()
    if process == 0:
        try:
            run()
        finally:
            os._exit(9)
    os.waitpid(process, 0)


def tensorboard_losses(save):
    reader = EventAccumulator(str(save / "runs"), purge_orphaned_data=False, size_guidance={"scalars": 0})
    reader.Reload()
    return sorted((event.step, round(event.value, 5)) for event in reader.Scalars("lm loss"))


def test_each_sink_gets_the_steps_of_its_own_interval(tmp_path):
    clock = Clock()
    reporter = opened(tmp_path, clock, tensorboard_log_interval=4)
    reporter.start(run_info(total_iterations=12))
    train(reporter, clock, 1, 12)
    reporter.finish(FinishRecord(phase="finished", iteration=12))
    reporter.close()
    rows = [row for row in logged(tmp_path) if "lm loss" in row]
    assert [(row["iteration"], row["lm loss"]) for row in rows] == [
        (1, 4.0),
        (5, pytest.approx((3.1 + 3.3 + 2.7 + 2.9) / 4)),
        (10, pytest.approx((2.45 + 2.55 + 2.3 + 2.1 + 2.25) / 5)),
        (12, pytest.approx((2.0 + 1.9) / 2)),
    ]
    assert tensorboard_losses(tmp_path) == [(1, 4.0), (4, 3.03333), (8, 2.55), (12, 2.0625)]
    assert progress.read(tmp_path / "progress.json").metrics["lm loss"] == 1.9


def test_elapsed_and_remaining_time_count_what_lies_between_steps(tmp_path):
    """A first step of 60 s, then 4 s a step and a 10 s evaluation: 3 steps take 18 s, and 5 are left at 6 s each."""
    clock = Clock()
    reporter = opened(tmp_path, clock, log_interval=4)
    reporter.start(run_info(total_iterations=9))
    for iteration, seconds in ((1, 60.0), (2, 4.0), (3, 10.0), (4, 4.0)):
        clock.time += seconds
        reporter.step(step(iteration))
    reporter.close()
    last = read_rows(tmp_path / "logging.jsonl")[-1]
    assert (last["elapsed_s"], last["remaining_s"]) == (78.0, 30.0)


@pytest.mark.parametrize("saved_at", [3, 5, 7, 10, 11])
@pytest.mark.parametrize("lost_steps", [0, 1, 2])
def test_a_run_killed_after_a_save_and_resumed_logs_what_an_uninterrupted_one_logs(tmp_path, saved_at, lost_steps):
    clock = Clock()
    whole = opened(tmp_path / "whole", clock)
    whole.start(run_info(total_iterations=12))
    train(whole, clock, 1, 12, save=saved_at)
    whole.finish(FinishRecord(phase="finished", iteration=12))
    whole.close()

    def until_it_is_killed():
        killed = opened(tmp_path / "parts", clock)
        killed.start(run_info(total_iterations=12))
        train(killed, clock, 1, min(saved_at + lost_steps, 12), save=saved_at)

    in_a_process_that_ends(until_it_is_killed)
    resumed = opened(tmp_path / "parts", clock)
    resumed.start(run_info(total_iterations=12, start_iteration=saved_at, consumed_samples=16 * saved_at))
    train(resumed, clock, saved_at + 1, 12)
    resumed.finish(FinishRecord(phase="finished", iteration=12))
    resumed.close()

    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")
    assert tensorboard_losses(tmp_path / "parts") == tensorboard_losses(tmp_path / "whole")


def test_a_save_that_failed_leaves_the_state_of_the_one_before(tmp_path):
    clock = Clock()
    killed = opened(tmp_path, clock)
    killed.start(run_info(total_iterations=12))
    train(killed, clock, 1, 7, save=7)
    train(killed, clock, 8, 9)
    killed.phase("saving")  # killed in this save: the next start continues from iteration 7
    resumed = opened(tmp_path, clock)
    resumed.start(run_info(total_iterations=12, start_iteration=7))
    train(resumed, clock, 8, 10)
    resumed.close()
    killed.close()
    [at_ten] = [row for row in read_rows(tmp_path / "logging.jsonl") if row["iteration"] == 10 and "lm loss" in row]
    assert at_ten["lm loss"] == pytest.approx((2.45 + 2.55 + 2.3 + 2.1 + 2.25) / 5)


def test_a_run_that_ends_with_its_data_logs_the_steps_that_are_left(tmp_path):
    clock = Clock()
    reporter = opened(tmp_path, clock)
    reporter.start(run_info(total_iterations=100))
    train(reporter, clock, 1, 7)
    reporter.finish(FinishRecord(phase="finished", iteration=7))
    reporter.close()
    assert [row["iteration"] for row in logged(tmp_path)] == [1, 5, 7]


def test_only_the_first_rank_writes(tmp_path):
    clock = Clock()
    reporter = opened(tmp_path, clock, rank=1)
    reporter.start(run_info())
    train(reporter, clock, 1, 10, save=10)
    reporter.finish(FinishRecord(phase="finished", iteration=10))
    reporter.close()
    assert list(tmp_path.iterdir()) == []


def test_arguments_and_environment_choose_the_places(tmp_path):
    environment = {"MTJ_PROGRESS_FILE": str(tmp_path / "progress" / "job.json"), "MTJ_RESTART_ATTEMPT": "3"}
    (tmp_path / "progress").mkdir()
    clock = Clock()
    reporter = opened(tmp_path / "save", clock, environment=environment, tensorboard_dir=str(tmp_path / "board"))
    reporter.start(run_info())
    train(reporter, clock, 1, 1)
    reporter.close()
    assert progress.read(tmp_path / "progress" / "job.json").attempt == 3
    assert len(list((tmp_path / "board").glob("events.out.tfevents.*"))) == 1
    assert sorted(path.name for path in (tmp_path / "save").iterdir()) == ["logging.jsonl", "report.html"]


def test_a_place_that_cannot_be_written_does_not_stop_the_others(tmp_path, caplog):
    clock = Clock()
    (tmp_path / "logging.jsonl").mkdir()
    reporter = opened(tmp_path, clock)
    reporter.start(run_info())
    train(reporter, clock, 1, 5)
    reporter.close()
    assert progress.read(tmp_path / "progress.json").iteration == 5
    assert "cannot write report sink=Jsonl" in caplog.text


def test_a_log_line_goes_to_standard_output(tmp_path, capsys):
    clock = Clock()
    reporter = opened(tmp_path, clock)
    reporter.start(run_info())
    train(reporter, clock, 1, 1)
    reporter.close()
    assert "| lm loss: 4.000000E+00 |" in capsys.readouterr().out
    assert json.loads((tmp_path / "logging.jsonl").read_text())["lm loss"] == 4.0
