"""The update in one pass on a GPU: its kernel, and trainings with it beside those with megatron-core's own steps."""

from __future__ import annotations

import itertools

import pytest

from tests.support.models import tiny_model

pytestmark = pytest.mark.gpu

BF16 = {"torch_dtype": "bfloat16", "recompute_granularity": "none", "lr": 1e-3}
TWO_BYTE_MOMENTS = {
    "use_precision_aware_optimizer": True,
    "exp_avg_dtype": "bf16",
    "exp_avg_sq_dtype": "bf16",
    "main_grads_dtype": "bf16",
}
CASES = {
    "bfloat16": BF16,
    "float32": {"torch_dtype": "float32", "lr": 1e-3},
    "remainders": {**BF16, "use_precision_aware_optimizer": True},
    "two-byte moments": {**BF16, **TWO_BYTE_MOMENTS},
    "clipped": {**BF16, "clip_grad": 1e-3},
    "not clipped": {**BF16, "clip_grad": 0.0},
    "rows of equal weight": {**BF16, "calculate_per_token_loss": False},
    "adapters": {**BF16, "train_type": "lora"},
    "fp8": {**BF16, "fp8_format": "hybrid"},
}


@pytest.fixture
def train_in_four_passes(train, monkeypatch):
    from megatron_trainer.megatron.patches import one_pass_update

    def run(**given):
        with monkeypatch.context() as patch:
            patch.setattr(one_pass_update, "_fits", lambda _: False)
            found = train(**given)
        assert found.engine.one_pass is None
        return found

    return run


def test_a_step_is_that_of_torch_in_every_combination_of_types():
    from tests.support.models import one_pass_adam

    for sizes, *types, is_split in itertools.product(
        one_pass_adam.SIZES, one_pass_adam.TYPES, one_pass_adam.TYPES, (False, True)
    ):
        line = one_pass_adam.case(sizes, *types, is_split=is_split, device="cuda")
        assert line["error"] <= 1e-6, line
        assert line["is_rounded"], line


@pytest.mark.parametrize("given", CASES.values(), ids=CASES.keys())
def test_a_training_is_that_of_megatron_cores_own_steps(train, train_in_four_passes, given):
    run, plain = train(**given), train_in_four_passes(**given)
    assert run.engine.one_pass is not None
    assert run.losses == pytest.approx(plain.losses, abs=2e-3 if given["torch_dtype"] == "bfloat16" else 1e-5)
    assert run.run.column("grad_norm") == pytest.approx(plain.run.column("grad_norm"), rel=2e-2)


def test_experts_too(train, train_in_four_passes, model_root):
    given = {**BF16, **TWO_BYTE_MOMENTS, "model": tiny_model.make("qwen3_moe", model_root, dtype="bfloat16")}
    assert train(**given).losses == pytest.approx(train_in_four_passes(**given).losses, abs=2e-3)


@pytest.mark.parametrize("given", [BF16, {**BF16, **TWO_BYTE_MOMENTS}], ids=["float32", "two-byte"])
def test_it_goes_on_after_a_restart(train, tmp_path, given):
    settings = {**given, "save_interval": 2}
    whole = train(**settings)
    train(**settings, train_iters=2, lr_decay_iters=4, folder=tmp_path / "resumed")
    resumed = train(**settings, folder=tmp_path / "resumed", resume="Auto")
    assert resumed.losses[-2:] == pytest.approx(whole.losses[-2:], abs=1e-3)


@pytest.mark.parametrize("given", [{"exp_avg_dtype": "fp8", "exp_avg_sq_dtype": "fp8"}, {"main_params_dtype": "fp16"}])
def test_what_the_kernel_does_not_know_keeps_its_own_steps(train, given):
    assert train(**BF16, use_precision_aware_optimizer=True, **given).engine.one_pass is None
