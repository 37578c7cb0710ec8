"""Effects of the groups learning_rate, regularization and evaluation on real tiny runs."""

import math
import re

import pytest
import torch
from safetensors.torch import load_file

from megatron_trainjob.exit_codes import ExitCode
from tests.effects.registry import effect

pytestmark = pytest.mark.dist

MATRIX = "model.layers.0.mlp.down_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"


def moved(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Distance of two models over all weights."""
    return math.sqrt(sum((a[name].double() - b[name].double()).square().sum().item() for name in a))


@pytest.fixture(scope="module")
def start(llama) -> dict[str, torch.Tensor]:
    """The weights before training."""
    return load_file(llama / "model.safetensors")


@effect("lr")
def test_lr_is_the_peak_of_the_schedule(train):
    assert train(lr=3e-3, train_iters=1).column("learning_rate") == pytest.approx([3e-3])


@effect("lr")
@pytest.mark.parametrize(("train_type", "expected"), [("full", 1e-5), ("lora", 1e-4)])
def test_an_unset_lr_depends_on_what_is_trained(train, train_type, expected):
    run = train(lr=None, train_type=train_type, train_iters=1)
    assert run.column("learning_rate") == pytest.approx([expected])


@effect("lr_decay_style")
@pytest.mark.parametrize(
    ("style", "third_step"), [("constant", 1.0), ("linear", 0.5), pytest.param("cosine", 0.5, marks=pytest.mark.slow)]
)
def test_lr_decay_style_shapes_the_decay(train, style, third_step):
    rates = train(lr_decay_style=style).column("learning_rate")
    quarter = {"constant": 1.0, "linear": 0.75, "cosine": (1 + math.cos(math.pi / 4)) / 2}[style]
    assert rates[:3] == pytest.approx([1e-3, quarter * 1e-3, third_step * 1e-3])


@effect("lr_wsd_decay_iters", "lr_wsd_decay_style")
def test_a_late_decay_has_its_own_length_and_shape(train):
    late = {"lr_decay_style": "WSD", "lr_wsd_decay_iters": 2}
    rates = train(**late, lr_wsd_decay_style="linear").column("learning_rate")
    assert rates == pytest.approx([1e-3, 1e-3, 1e-3, 0.5e-3])
    other = train(**late, lr_wsd_decay_style="minus_sqrt").column("learning_rate")
    assert other[3] == pytest.approx((1 - math.sqrt(0.5)) * 1e-3)


@pytest.mark.parametrize(
    "given", [{"lr_warmup_iters": 5}, {"lr_decay_style": "WSD", "lr_wsd_decay_iters": 5}], ids=["warmup", "late decay"]
)
def test_a_schedule_that_does_not_fit_is_refused_also_where_the_data_decides_on_the_length(train, given):
    """18 rows make four steps, which is known once they are read."""
    run = train(train_iters=None, max_epochs=1, global_batch_size=4, **given)
    assert run.exit_code == ExitCode.BAD_ARGUMENTS
    assert re.match(rf"spec.args.{list(given)[-1]}: .* use at most [34] \(got 5\)", run.message), run.message


@effect("lr_decay_iters")
def test_lr_decay_iters_ends_the_decay_before_training_ends(train):
    rates = train(lr_decay_style="linear", lr_decay_iters=2).column("learning_rate")
    assert rates == pytest.approx([1e-3, 0.5e-3, 0.0, 0.0])


@effect("lr_warmup_iters")
def test_lr_warmup_iters_rises_linearly(train):
    rates = train(lr_decay_style="constant", lr_warmup_iters=2).column("learning_rate")
    assert rates == pytest.approx([0.0, 0.5e-3, 1e-3, 1e-3])


@effect("lr_warmup_init")
def test_lr_warmup_init_is_where_the_warmup_starts(train):
    """As Megatron-LM's scheduler: init + (peak - init) * steps / warmup."""
    rates = train(lr_decay_style="constant", lr_warmup_iters=2, lr_warmup_init=2e-4).column("learning_rate")
    assert rates == pytest.approx([2e-4, 6e-4, 1e-3, 1e-3])


@effect("lr_warmup_fraction")
def test_lr_warmup_fraction_is_a_share_of_the_decay(train):
    rates = train(lr_decay_style="constant", lr_warmup_fraction=0.5).column("learning_rate")
    assert rates == pytest.approx([0.0, 0.5e-3, 1e-3, 1e-3])


@effect("min_lr")
def test_min_lr_is_where_the_decay_ends(train):
    rates = train(lr_decay_style="linear", lr_decay_iters=2, min_lr=4e-4).column("learning_rate")
    assert rates == pytest.approx([1e-3, 0.7e-3, 4e-4, 4e-4])


@effect("weight_decay")
def test_weight_decay_shrinks_matrices_and_leaves_norms_alone(train, start):
    """AdamW's first step: the decay alone moves a weight by lr * decay * weight, whatever the gradient."""
    without, decayed = (train(train_iters=1, to_hf=True, weight_decay=decay).weights() for decay in (0.0, 0.5))
    assert torch.equal(without[NORM], decayed[NORM])
    torch.testing.assert_close(without[MATRIX] - decayed[MATRIX], 1e-3 * 0.5 * start[MATRIX], atol=1e-7, rtol=1e-2)


@effect("clip_grad")
def test_clip_grad_bounds_the_update_and_the_norm_is_logged_before_it(train, start):
    """Plain SGD moves by lr * gradient, so the way is lr * min(norm, bound)."""
    settings = {"train_iters": 1, "to_hf": True, "optimizer": "sgd", "weight_decay": 0.0}
    settings["use_distributed_optimizer"] = False
    free, clipped = (train(clip_grad=bound, **settings) for bound in (1e9, 1e-2))
    norm = free.column("grad_norm")[0]
    assert clipped.column("grad_norm") == [norm]
    assert norm > 0.1
    assert moved(free.weights(), start) == pytest.approx(1e-3 * norm, rel=1e-3)
    assert moved(clipped.weights(), start) == pytest.approx(1e-3 * 1e-2, rel=2e-2)


@effect("adam_beta1", "adam_beta2", "adam_eps")
@pytest.mark.parametrize(("name", "value"), [("adam_beta1", 0.5), ("adam_beta2", 0.5), ("adam_eps", 1e-2)])
def test_adam_settings_change_the_update(train, start, name, value):
    """A large eps shortens every step; the betas matter from the second step on, when moments mix two gradients.

    That the update is torch's own, number by number, is shown by the comparison of whole runs in test_training.py.
    """
    default, changed = (train(train_iters=2, to_hf=True, weight_decay=0.0, **s).weights() for s in ({}, {name: value}))
    if name == "adam_eps":
        assert moved(changed, start) < 0.5 * moved(default, start)
    else:
        assert 1e-3 < moved(changed, default) / moved(default, start) < 1.0


@pytest.mark.parametrize(
    "given",
    [
        {},
        pytest.param({"sgd_momentum": 0.0}, marks=pytest.mark.slow),
        pytest.param({"torch_dtype": "bfloat16", "sgd_momentum": 0.5}, marks=pytest.mark.slow),
    ],
    ids=["momentum", "none", "16 bit"],
)
def test_sgd_goes_on_bit_by_bit_after_a_stop(train, given):
    given = {"optimizer": "sgd", "use_distributed_optimizer": False, "lr": 0.1, **given}
    whole = train(**given).column("lm loss")
    assert train(name="stopped", stop_at=2, resume="Auto", **given).exit_code == ExitCode.PREEMPTED
    resumed = train(name="stopped", resume="Required", attempt=1, **given)
    assert resumed.exit_code == 0, resumed.message
    assert resumed.column("lm loss") == whole


@effect("sgd_momentum", "optimizer")
def test_sgd_moves_by_the_gradient_and_momentum_adds_the_step_before(train, start):
    """w1 = w0 - lr g0 and w2 = w1 - lr (g1 + momentum g0): momentum 0.5 adds half of the first way to the second."""
    settings = {"optimizer": "sgd", "use_distributed_optimizer": False, "weight_decay": 0.0, "clip_grad": 1e9}
    settings |= {"lr_decay_style": "constant", "to_hf": True}
    one = train(train_iters=1, sgd_momentum=0.0, **settings).weights()
    none, half = (train(train_iters=2, sgd_momentum=m, **settings).weights() for m in (0.0, 0.5))
    torch.testing.assert_close(none[MATRIX] - half[MATRIX], 0.5 * (start[MATRIX] - one[MATRIX]), atol=1e-7, rtol=1e-2)


@effect("eval_interval")
def test_eval_interval_is_the_distance_of_evaluations_and_one_comes_last(train, data):
    run = train(val_dataset=[str(data)], eval_interval=2, train_iters=5)
    assert [line["iteration"] for line in run.log if "eval_lm loss" in line] == [2, 4, 5]


@effect("eval_interval")
def test_an_unset_eval_interval_follows_save_interval(train, data):
    run = train(val_dataset=[str(data)], save_interval=3, train_iters=4)
    assert [line["iteration"] for line in run.log if "eval_lm loss" in line] == [3, 4]


@effect("eval_iters")
@pytest.mark.parametrize(
    ("iterations", "samples"), [(2, [8]), (-1, [18]), (0, []), pytest.param(9, [18], marks=pytest.mark.slow)]
)
def test_eval_iters_is_the_number_of_global_batches_of_a_round(train, data, iterations, samples):
    """-1 stands for all of the 18 rows, the last batch of 4 is short; no row is read twice."""
    run = train(val_dataset=[str(data)], eval_iters=iterations, train_iters=1, global_batch_size=4)
    assert run.column("eval_samples") == samples
