"""An optimizer that holds fewer bits on a GPU: what a checkpoint has of it, and what it takes beside its state."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.gpu

BF16 = {"torch_dtype": "bfloat16", "recompute_granularity": "none", "save_interval": 2}
AWARE = {"use_precision_aware_optimizer": True}
EIGHT_BITS = {**AWARE, "exp_avg_dtype": "fp8", "exp_avg_sq_dtype": "fp8"}
HALF_RUN = {"train_iters": 2, "lr_decay_iters": 4}


def main_parameters(run: Any) -> list[Any]:
    from megatron_trainer.megatron.patches import fused_adam, optimizer_shards

    part = run.engine.optimizer.chained_optimizers[0]
    return [
        fused_adam.states(part, parameter, is_loading=False)["param"].detach().cpu()
        for parameter, _ in optimizer_shards._held(part)
    ]


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
    states = train(**BF16, **EIGHT_BITS).optimizer().state.values()
    moments = [state[name] for state in states for name in ("exp_avg", "exp_avg_sq")]
    assert moments
    assert all(moment._transpose is None and moment._data.element_size() == 1 for moment in moments)


def test_a_step_in_pieces_changes_no_number(train, monkeypatch):
    from megatron_trainer.megatron.patches import fused_adam

    whole = train(**BF16, **EIGHT_BITS)
    monkeypatch.setattr(fused_adam, "CONVERTED_AT_ONCE", 5000)
    pieces = train(**BF16, **EIGHT_BITS)
    assert pieces.losses == whole.losses
    assert all(a.equal(b) for a, b in zip(main_parameters(pieces), main_parameters(whole), strict=True))


def test_saving_copies_the_state_to_host_memory_alone(train, tmp_path):
    """Tensors with fewer bits than a checkpoint has; the state in float32 stays where it is."""
    from megatron_trainer.megatron.patches import fused_adam, optimizer_shards

    part = train(**BF16, **EIGHT_BITS).engine.optimizer.chained_optimizers[0]
    found = [fused_adam.states(part, each, is_loading=False) for each, _ in optimizer_shards._held(part)]
    assert {tensor.device.type for states in found for tensor in states.values()} == {"cpu"}
    assert {str(tensor.dtype) for states in found for tensor in states.values()} == {"torch.float32"}
    assert part.optimizer.state, "the state is in its place again"
