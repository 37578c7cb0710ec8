"""A run goes on as the run that it was: upon its own weights, wherever they lie now, of its own task and model."""

import shutil
from pathlib import Path

import pytest

from megatron_trainjob.exit_codes import ExitCode, retry_class
from tests.support.arguments.changes_on_resume import same_loss
from tests.support.models import tiny_model
from tests.support.ranks.resumed_runs import LORA, base

pytestmark = [pytest.mark.dist, pytest.mark.timeout(600)]


@pytest.mark.parametrize(
    "record",
    ["{", "[]", "{}", '{"task": "sft", "arguments": []}', '{"task": "sft", "arguments": {}, "weights": {"base": 5}}'],
)
def test_a_record_that_is_damaged_is_said_and_ends_no_run(full, tmp_path, record):
    """A checkpoint whose files are not those that were written is passed over where another is whole."""
    found = full.go_on(tmp_path, {}, record=record)
    assert (found.run.exit_code, retry_class(found.run.exit_code)) != (ExitCode.ERROR, "retry"), found.run.message
    told = [*found.warnings, *found.run.message.splitlines()]
    assert any("args.json" in line for line in told), told


def test_a_run_of_another_task_or_of_another_model_does_not_go_on(full, model_root, tmp_path):
    found = full.go_on(tmp_path / "task", {}, task="pt")
    assert found.run.exit_code == ExitCode.CHECKPOINT_INCOMPATIBLE
    assert "spec.task" in found.run.message
    assert "was saved with 'sft'" in found.run.message
    wide = tiny_model.make("llama", model_root, num_hidden_layers=2, intermediate_size=192)
    found = full.go_on(tmp_path / "model", {"model": str(wide)})
    assert found.run.exit_code == ExitCode.CHECKPOINT_INCOMPATIBLE
    assert "intermediate_size (config.json)" in found.run.message
    assert "was saved with 128" in found.run.message
    assert "(got 192)" in found.run.message


@pytest.fixture(scope="module")
def other_weights(model_root):
    """A model of the same config, names, shapes and sizes."""
    return {"model": str(tiny_model.make("llama", model_root, num_hidden_layers=2, seed=2))}


def test_adapters_do_not_go_on_upon_the_weights_of_another_model(lora, tmp_path, other_weights):
    found = lora.go_on(tmp_path, other_weights)
    assert found.run.exit_code == ExitCode.CHECKPOINT_INCOMPATIBLE
    line = next(line for line in found.run.message.splitlines() if "spec.args.model (weights of the base):" in line)
    assert f"was saved with '{lora.given['model']} (sha256 " in line
    assert f"(got '{other_weights['model']} (sha256 " in line


def test_a_run_of_all_parameters_goes_on_from_its_checkpoint_whatever_the_model_folder_holds_now(
    full, tmp_path, other_weights
):
    found = full.go_on(tmp_path, other_weights)
    assert same_loss(found, full.run)
    assert any("; training continues from the checkpoint's weights" in line for line in found.warnings)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_model_that_was_moved_is_the_same_model(kind, request, tmp_path):
    run = request.getfixturevalue(kind)
    moved = shutil.copytree(run.given["model"], tmp_path / "moved")
    found = run.go_on(tmp_path, {"model": str(moved)})
    assert same_loss(found, run.run)
    assert [line for line in found.warnings if "weights" in line] == []


def test_a_finished_run_of_another_model_is_no_success_without_a_step(full, tmp_path, other_weights):
    found = full.go_on(tmp_path / "other", other_weights, is_finished=True)
    assert found.run.exit_code == ExitCode.CHECKPOINT_INCOMPATIBLE
    assert "spec.args.model (weights of the base):" in found.run.message
    assert "already has all steps of this run" in found.run.message
    same = full.go_on(tmp_path / "same", {"lr": 5e-4}, is_finished=True)
    assert (same.run.exit_code, same.run.message) == (0, "")
    assert "all steps are already done, so these have no effect: lr was 0.001, is 0.0005" in same.warnings


def test_adapters_upon_a_loaded_base_go_on_upon_that_base(full, tmp_path_factory, tmp_path):
    folder = tmp_path_factory.mktemp("upon")
    upon = base(Path(full.given["model"]), folder, **LORA, load=str(full.run.folder))
    found = upon.go_on(tmp_path / "same", {})
    assert same_loss(found, upon.run)
    refused = upon.go_on(tmp_path / "other", {"load": None})
    assert refused.run.exit_code == ExitCode.CHECKPOINT_INCOMPATIBLE
    assert "spec.args.model (weights of the base):" in refused.run.message


def test_a_run_goes_on_without_the_checkpoint_that_it_started_from(full, tmp_path_factory, tmp_path):
    start = shutil.copytree(full.run.folder, tmp_path / "start")
    folder = tmp_path_factory.mktemp("started")
    run = base(Path(full.given["model"]), folder, load=str(start), finetune=True)
    shutil.rmtree(start)
    assert same_loss(run.go_on(tmp_path / "on", {}), run.run)


def test_adapters_go_on_where_load_is_the_folder_of_the_run(full, tmp_path_factory, tmp_path):
    folder = tmp_path_factory.mktemp("own")
    own = {"load": str(folder / "run"), "exit_on_missing_checkpoint": False}
    run = base(Path(full.given["model"]), folder, **LORA, **own)
    assert same_loss(run.go_on(tmp_path, {"load": str(tmp_path / "run")}), run.run)
