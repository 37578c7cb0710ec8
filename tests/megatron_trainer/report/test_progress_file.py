"""The progress record, read back through the contract."""

from megatron_trainer.report import CheckpointRecord, FinishRecord, PhaseRecord
from megatron_trainer.report.progress_file import ProgressFile
from megatron_trainjob import progress
from megatron_trainjob.progress import Progress
from tests.support.data.report_records import EPOCH, Clock, evaluation, log_record, run_info


def opened(tmp_path, clock):
    return ProgressFile(tmp_path / "progress.json", attempt=2, report_path=tmp_path / "report.html", now=clock)


def test_the_record_follows_a_run_from_start_to_end(tmp_path):
    clock = Clock()
    sink = opened(tmp_path, clock)
    for event in (
        run_info(total_iterations=206),
        PhaseRecord(phase="training"),
        log_record(),
        evaluation(5, 2.5),
        CheckpointRecord(iteration=5, path="/out/iter_0000005", seconds=1.0),
    ):
        clock.time += 1.5
        sink.write(event)
    expected = Progress(
        phase="training",
        attempt=2,
        iteration=5,
        total_iterations=206,
        consumed_samples=320,
        elapsed_s=5.2,
        remaining_s=201.0,
        tokens_per_second=2105.0,
        tokens_per_second_per_gpu=1052.5,
        metrics={"lm loss": 1.180399, "learning_rate": 4.854369e-06, "grad_norm": 1.105, "eval_lm loss": 2.5},
        checkpoint_iteration=5,
        checkpoint_path="/out/iter_0000005",
        report_path=str(tmp_path / "report.html"),
        outputs={},
        updated_at=EPOCH + 7.5,
    )
    assert progress.read(tmp_path / "progress.json") == expected
    sink.write(FinishRecord(phase="finished", iteration=206, outputs={"adapter": "/out/adapter"}))
    record = progress.read(tmp_path / "progress.json")
    assert (record.phase, record.remaining_s, record.outputs) == ("finished", 0.0, {"adapter": "/out/adapter"})


def test_steps_are_written_at_most_once_a_second_and_phases_at_once(tmp_path):
    clock = Clock()
    sink = opened(tmp_path, clock)
    seen = []
    for iteration, seconds in ((1, 0.0), (2, 0.4), (3, 0.4), (4, 0.4)):
        clock.time += seconds
        sink.write(log_record(iteration=iteration))
        seen.append(progress.read(tmp_path / "progress.json").iteration)
    assert seen == [1, 1, 1, 4]
    sink.write(log_record(iteration=5))
    sink.write(PhaseRecord(phase="saving"))
    record = progress.read(tmp_path / "progress.json")
    assert (record.phase, record.iteration) == ("saving", 5)


def test_a_resumed_run_shows_where_it_starts_before_its_first_step(tmp_path):
    opened(tmp_path, Clock()).write(run_info(start_iteration=7, total_iterations=20, consumed_samples=112))
    record = progress.read(tmp_path / "progress.json")
    assert (record.iteration, record.percentage, record.consumed_samples) == (7, 35, 112)


def test_a_stopped_run_keeps_its_estimate_of_what_is_left(tmp_path):
    sink = opened(tmp_path, Clock())
    sink.write(log_record())
    sink.write(FinishRecord(phase="stopped", iteration=5))
    record = progress.read(tmp_path / "progress.json")
    assert (record.phase, record.remaining_s) == ("stopped", 201.0)
