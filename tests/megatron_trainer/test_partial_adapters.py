"""Adapters and fully trained modules on some layers only: every choice trains, saves, resumes and exports."""

import pytest

from tests.support.matrix import mostly_slow
from tests.support.ranks.tiny_run import arguments, train, write_data

pytestmark = pytest.mark.dist

PIPELINE = {"pipeline_model_parallel_size": 2}
CHOICES = {
    "every other layer": (1, {"target_regex": r"decoder\.layers\.[02]\..*linear_qkv"}),
    "a module of one layer in full": (1, {"target_modules": ["linear_qkv"], "modules_to_save": ["layers.1.mlp"]}),
    "the last stage alone": (2, PIPELINE | {"target_regex": r"decoder\.layers\.3\..*linear_fc1"}),
    "the first stage alone": (2, PIPELINE | {"target_regex": r"decoder\.layers\.0\..*linear_proj"}),
    "half a tensor-parallel model": (
        2,
        {"tensor_model_parallel_size": 2, "target_regex": r"decoder\.layers\.[01]\.mlp.*"},
    ),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "train.jsonl")


@pytest.mark.parametrize("choice", mostly_slow(CHOICES, ["half a tensor-parallel model"]))
def test_any_choice_of_layers_saves_resumes_in_another_layout_and_exports(llama, data, tmp_path, choice):
    ranks, given = CHOICES[choice]
    given = {"train_type": "lora", "lora_dropout": 0.0, "train_iters": 4, **given}
    whole = train(arguments(llama, data, tmp_path / "whole", **given), ranks=ranks)
    assert (whole.exit_code, whole.message) == (0, "")
    split = arguments(llama, data, tmp_path / "split", **given)
    assert train(split, ranks=ranks, stop_at=2, resume="Auto").exit_code == 143
    alone = split | {"pipeline_model_parallel_size": 1, "tensor_model_parallel_size": 1}
    resumed = train(alone, resume="Required", attempt=1)
    assert (resumed.exit_code, resumed.message) == (0, "")
    assert resumed.column("lm loss") == pytest.approx(whole.column("lm loss"), abs=1e-4)
    assert list(resumed.folder.glob("*/adapter_model.safetensors"))


@pytest.mark.slow
def test_full_training_of_some_layers_saves_and_resumes(llama, data, tmp_path):
    """The optimizer's state has the same holes."""
    given = {"train_iters": 4, "freeze_parameters": ["decoder.layers.0", "decoder.layers.2"]}
    whole = train(arguments(llama, data, tmp_path / "whole", **given))
    assert (whole.exit_code, whole.message) == (0, "")
    split = arguments(llama, data, tmp_path / "split", **given)
    assert train(split, stop_at=2, resume="Auto").exit_code == 143
    resumed = train(split, resume="Required", attempt=1)
    assert resumed.column("lm loss") == pytest.approx(whole.column("lm loss"), abs=1e-5)
