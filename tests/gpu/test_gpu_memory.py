"""An optimizer that holds fewer bits on a GPU: what a checkpoint has of it, and what it takes beside its state."""

from __future__ import annotations

import math
from typing import Any

import pytest

pytestmark = pytest.mark.gpu

BF16 = {"torch_dtype": "bfloat16", "recompute_granularity": "none", "save_interval": 2}
AWARE = {"use_precision_aware_optimizer": True}
EIGHT_BITS = {**AWARE, "exp_avg_dtype": "fp8", "exp_avg_sq_dtype": "fp8"}
HALF_RUN = {"train_iters": 2, "lr_decay_iters": 4}
HELD = {
    "plain": ({}, 0.0),
    "aware": (AWARE, 0.0),
    "float32": ({**AWARE, "torch_dtype": "float32"}, 0.0),
    "bf16": ({**AWARE, "exp_avg_dtype": "bf16", "exp_avg_sq_dtype": "bf16", "main_grads_dtype": "bf16"}, 0.0),
    "fp16": ({**AWARE, "exp_avg_dtype": "fp16", "exp_avg_sq_dtype": "fp16", "main_params_dtype": "fp16"}, 2**-10),
    "fp8": (EIGHT_BITS, 2**-3),
    "blockwise": ({**AWARE, "exp_avg_dtype": "bf16", "fp8_format": "e4m3", "fp8_recipe": "blockwise"}, 0.0),
}
"""Settings -> by how much a number may move that is scaled and rounded once more, relative to it."""


def states(run: Any) -> list[dict[str, Any]]:
    """Main parameter and moments of every parameter, as a checkpoint has them."""
    from megatron_trainer.megatron.patches import fused_adam, optimizer_shards

    part = run.engine.optimizer.chained_optimizers[0]
    found = [fused_adam.states(part, each, is_loading=False) for each, _ in optimizer_shards._held(part)]
    return [{name: value.detach().float().cpu() for name, value in each.items()} for each in found]


def main_parameters(run: Any) -> list[Any]:
    return [state["param"] for state in states(run)]


@pytest.mark.parametrize(("given", "moved"), HELD.values(), ids=HELD.keys())
def test_a_resumed_optimizer_has_the_state_that_was_saved(train, tmp_path, given, moved):
    """No step follows, so that nothing hides a moment that was not loaded."""
    settings = {**BF16, **given, **HALF_RUN}
    saved, resumed = (train(**settings, folder=tmp_path / "run", resume=how) for how in ("Never", "Auto"))
    pairs = list(zip(states(saved), states(resumed), strict=True))
    assert {name for state, _ in pairs for name in state} == {"param", "exp_avg", "exp_avg_sq"}
    for one, other in pairs:
        for name, value in one.items():
            assert value.any(), name
            smallest = moved * value.abs().max() * 2**-8  # below that, 8 bits have no more bits
            assert ((other[name] - value).abs() <= moved * value.abs() + smallest).all(), name
    counts = [[group["step"] for group in run.optimizer().param_groups] for run in (saved, resumed)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize(("first", "second"), [(AWARE, AWARE), (AWARE, {}), ({}, AWARE)], ids=["both", "from", "to"])
def test_main_parameters_are_rebuilt_bit_by_bit(train, tmp_path, first, second):
    """Remainders of 16 bits -> checkpoint -> remainders or float32, and back; the weights stay those of the run before.

    A number midway between two weights, 1 in 65,536, may move by its last bit where the weights were rounded by torch.
    """
    saved = train(**BF16, **first, **HALF_RUN, folder=tmp_path / "run")
    resumed = train(**BF16, **second, **HALF_RUN, folder=tmp_path / "run", resume="Auto")
    one, other = main_parameters(saved), main_parameters(resumed)
    differing = sum(int((a != b).sum()) for a, b in zip(one, other, strict=True))
    assert differing <= (sum(map(len, one)) // 2**14 if first == {} else 0)
    assert any((a != a.bfloat16().float()).any() for a in one), "more than a weight can hold"
    weights = [[p.detach() for p in run.engine.models[0].parameters()] for run in (saved, resumed)]
    assert all(a.equal(b) for a, b in zip(*weights, strict=True))


def test_a_run_goes_on_in_float32_as_if_it_had_always_been(train, tmp_path):
    whole = train(**BF16)
    train(**BF16, **AWARE, **HALF_RUN, folder=tmp_path / "run")
    resumed = train(**BF16, folder=tmp_path / "run", resume="Auto")
    assert resumed.losses[-2:] == pytest.approx(whole.losses[-2:], abs=1e-3)


def test_eight_bit_moments_are_held_once(train):
    moments = [
        state[name]
        for state in train(**BF16, **EIGHT_BITS).optimizer().state.values()
        for name in ("exp_avg", "exp_avg_sq")
    ]
    assert moments
    assert all(moment._transpose is None and moment._data.element_size() == 1 for moment in moments)


def test_eight_bit_moments_without_a_gradient_stay_zero(train):
    """Those of every A in the first step, where every B is zero."""
    run = train(**BF16, **EIGHT_BITS, train_type="lora")
    assert all(map(math.isfinite, run.losses))
    assert all(value.isfinite().all() for state in states(run) for value in state.values())


def test_a_step_in_pieces_changes_no_number(train, monkeypatch):
    from megatron_trainer.megatron.patches import fused_adam

    whole = train(**BF16, **EIGHT_BITS)
    monkeypatch.setattr(fused_adam, "CONVERTED_AT_ONCE", 5000)
    pieces = train(**BF16, **EIGHT_BITS)
    assert pieces.losses == whole.losses
    assert all(a.equal(b) for a, b in zip(main_parameters(pieces), main_parameters(whole), strict=True))


def test_saving_copies_the_state_to_host_memory_alone(train):
    """Tensors with fewer bits than a checkpoint has; the state in float32 stays where it is."""
    from megatron_trainer.megatron.patches import fused_adam, optimizer_shards

    part = train(**BF16, **EIGHT_BITS).engine.optimizer.chained_optimizers[0]
    found = [fused_adam.states(part, each, is_loading=False) for each, _ in optimizer_shards._held(part)]
    assert {tensor.device.type for state in found for tensor in state.values()} == {"cpu"}
    assert {str(tensor.dtype) for state in found for tensor in state.values()} == {"torch.float32"}
    assert part.optimizer.state, "the state is in its place again"
