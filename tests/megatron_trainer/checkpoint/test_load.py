"""What a resume refuses before it loads anything, and what it allows others meanwhile."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_trainer.checkpoint.load import LoadPolicy, _moves_experts
from megatron_trainer.failure import TrainingError
from megatron_trainer.megatron.patches import pickled_scaling
from megatron_trainjob.checkpoint_folder import inspect
from megatron_trainjob.exit_codes import ExitCode
from tests.support.checkpoint import checkpoint_files


def policy(ep: int, *, with_optimizer: bool = True) -> LoadPolicy:
    return LoadPolicy(layout={"ep": ep}, with_optimizer=with_optimizer, with_rng=True)


@pytest.mark.parametrize(("saved", "wanted"), [(2, 1), (1, 2)])
def test_spread_experts_of_an_optimizer_that_is_not_split_are_refused_with_both_sizes_and_what_to_do(
    tmp_path, saved, wanted
):
    manifest = inspect(checkpoint_files.write(tmp_path, 1)).manifest
    assert manifest is not None
    manifest = replace(manifest, layout={"ep": saved})
    path = Path("iter_0000001")
    with pytest.raises(TrainingError, match=f"expert_model_parallel_size {saved}.*{wanted}.*no_load_optim") as refused:
        _moves_experts(path, manifest, policy(wanted), is_split=False)
    assert refused.value.exit_code == ExitCode.CHECKPOINT_INCOMPATIBLE
    assert _moves_experts(path, manifest, policy(wanted), is_split=True)
    assert not _moves_experts(path, manifest, policy(saved), is_split=False)
    assert _moves_experts(path, manifest, policy(wanted, with_optimizer=False), is_split=False)


def test_experts_that_only_tensor_ranks_spread_are_refused_with_both_sizes(tmp_path):
    manifest = inspect(checkpoint_files.write(tmp_path, 1)).manifest
    assert manifest is not None
    manifest = replace(manifest, layout={"tp": 2, "ep": 1, "etp": 1})
    path = Path("iter_0000001")
    said = "expert_model_parallel_size 1 and expert_tensor_parallel_size 1; .* with expert_model_parallel_size 1:"
    with pytest.raises(TrainingError, match=said):
        _moves_experts(path, manifest, policy(1), is_split=False)
    assert _moves_experts(path, manifest, policy(1), is_split=True)
    assert not _moves_experts(path, manifest, policy(2), is_split=False)


@pytest.mark.parametrize("before", [None, "0", "1"])
def test_transformer_engine_may_unpickle_during_a_resume_alone(monkeypatch, before):
    monkeypatch.delenv(pickled_scaling.VARIABLE, raising=False)
    if before is not None:
        monkeypatch.setenv(pickled_scaling.VARIABLE, before)
    with pickled_scaling.allowed():
        assert os.environ[pickled_scaling.VARIABLE] == "1"
    assert os.environ.get(pickled_scaling.VARIABLE) == before
