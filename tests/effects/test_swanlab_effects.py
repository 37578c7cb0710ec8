"""Effects of the SwanLab arguments: what an offline run stores on disk."""

import pytest

from megatron_trainer.report import FinishRecord, open_reporter
from megatron_trainjob.args.tree import TrainArgs
from tests.effects.registry import effect
from tests.support.data.report_records import Clock, run_info, step
from tests.support.data.swanlab_files import StoredRun, stored_run


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """stored(**arguments): the SwanLab runs in the run's folder."""
    pytest.importorskip("swanlab")
    monkeypatch.setenv("SWANLAB_MODE", "offline")

    def report(**arguments: object) -> list[StoredRun]:
        reporter = open_reporter(TrainArgs(**arguments), save=tmp_path, rank=0, environment={}, now=Clock())
        reporter.start(run_info(total_iterations=1))
        reporter.step(step(1, 2.5))
        reporter.finish(FinishRecord(phase="finished", iteration=1))
        reporter.close()
        return [stored_run(path) for path in (tmp_path / "swanlab").glob("run-*/*.swanlab")]

    return report


@pytest.mark.slow
def test_without_report_to_nothing_is_stored(stored):
    assert stored(swanlab_project="my-project") == []


@effect("report_to")
def test_report_to_sends_a_run_under_default_names(stored, tmp_path):
    [run] = stored(report_to=("swanlab",))
    assert (run.project, run.name) == ("megatron-train-operator", tmp_path.name)
    assert run.scalars["lm loss"] == {1: 2.5}


@effect("swanlab_project", "swanlab_exp_name")
def test_a_project_and_an_experiment_have_their_names(stored):
    [run] = stored(report_to=("swanlab",), swanlab_project="my-project", swanlab_exp_name="my-run")
    assert (run.project, run.name) == ("my-project", "my-run")
