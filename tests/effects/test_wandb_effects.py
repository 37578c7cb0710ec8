"""Effects of the Weights & Biases arguments: what an offline run stores on disk."""

import pytest

from megatron_trainer.report import FinishRecord, open_reporter
from megatron_trainjob.args.tree import TrainArgs
from tests.effects.registry import effect
from tests.support.data.report_records import Clock, run_info, step


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """stored(**arguments): the bytes of every W&B file, by its path below the run's folder."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")

    def report(**arguments):
        clock = Clock()
        reporter = open_reporter(TrainArgs(**arguments), save=tmp_path, rank=0, environment={}, now=clock)
        reporter.start(run_info(total_iterations=1))
        reporter.step(step(1, 2.5))
        reporter.finish(FinishRecord(phase="finished", iteration=1))
        reporter.close()
        return {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*.wandb")}

    return report


@effect("wandb_project", "wandb_exp_name")
def test_a_project_stores_the_run_under_its_name(stored):
    [(path, content)] = stored(wandb_project="my-project", wandb_exp_name="my-run").items()
    assert path.startswith("wandb/")
    for text in (b"my-project", b"my-run", b"lm loss"):
        assert text in content


@effect("report_to")
@pytest.mark.slow
def test_report_to_sends_a_run_under_default_names(stored, tmp_path):
    [content] = stored(report_to=("wandb",)).values()
    assert b"megatron-train-operator" in content
    assert tmp_path.name.encode() in content


@pytest.mark.slow
def test_without_a_project_nothing_is_stored(stored):
    assert stored() == {}


@effect("wandb_save_dir")
def test_the_folder_holds_the_files(stored, tmp_path):
    [path] = stored(wandb_project="p", wandb_exp_name="r", wandb_save_dir=str(tmp_path / "elsewhere"))
    assert path.startswith("elsewhere/")
