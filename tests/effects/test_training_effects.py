"""Effects of the arguments of training, rates, regularisation, evaluation and checkpoints on real tiny runs.

Each test changes one argument of a run that is otherwise the same and looks at what the argument promises.
"""

import gc
import json
import math

import pytest
from megatron_trainer.backend import CpuBackend

CpuBackend().install()

import torch  # noqa: E402  (the backend comes before megatron)
from effects.registry import effect  # noqa: E402
from megatron_trainer.checkpoint import folder  # noqa: E402
from megatron_trainer.failure import InvalidInput, TrainingError  # noqa: E402
from megatron_trainjob.exit_codes import ExitCode  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from tiny_run import run_tiny, tiny_arguments, write_data  # noqa: E402


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "train.jsonl", rows=18)


@pytest.fixture
def train(tiny_models, data, tmp_path):
    """train(**arguments) runs in a new folder (name=... chooses it); task and Environment fields may be given too."""
    count = iter(range(100))

    def run(*, name=None, resume="Never", attempt=0, task="sft", **arguments):
        save = tmp_path / (name or f"run{next(count)}")
        given = tiny_arguments(tiny_models("llama"), data, save, **arguments)
        return run_tiny({k: v for k, v in given.items() if v is not None}, task=task, resume=resume, attempt=attempt)

    return run


@pytest.fixture(scope="module")
def plain(tiny_models, data, tmp_path_factory):
    """The run that the others are compared with."""
    save = tmp_path_factory.mktemp("plain") / "run"
    return run_tiny(tiny_arguments(tiny_models("llama"), data, save, to_hf=True))


def trained(run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "hf" / "model.safetensors")


# learning rate


@effect("lr")
def test_lr_is_the_peak_of_the_schedule(train):
    assert train(lr=3e-3, train_iters=1).column("learning_rate") == pytest.approx([3e-3])


@effect("lr_decay_style")
@pytest.mark.parametrize(
    ("style", "third"),
    [("constant", 1.0), ("linear", 0.5), ("cosine", (1 + math.cos(math.pi / 2)) / 2)],
)
def test_lr_decay_style_shapes_the_decay(train, style, third):
    assert train(lr_decay_style=style).column("learning_rate")[2] == pytest.approx(1e-3 * third)


@effect("lr_decay_iters")
def test_lr_decay_iters_ends_the_decay_before_training_ends(train):
    rates = train(lr_decay_style="linear", lr_decay_iters=2).column("learning_rate")
    assert rates == pytest.approx([1e-3, 0.5e-3, 0.0, 0.0])


@effect("lr_warmup_iters")
def test_lr_warmup_iters_rises_linearly(train):
    rates = train(lr_decay_style="constant", lr_warmup_iters=2).column("learning_rate")
    assert rates == pytest.approx([0.0, 0.5e-3, 1e-3, 1e-3])


@effect("lr_warmup_fraction")
def test_lr_warmup_fraction_is_a_share_of_the_decay(train):
    rates = train(lr_decay_style="constant", lr_warmup_fraction=0.5).column("learning_rate")
    assert rates == pytest.approx([0.0, 0.5e-3, 1e-3, 1e-3])


@effect("min_lr")
def test_min_lr_is_where_the_decay_ends(train):
    rates = train(lr_decay_style="linear", lr_decay_iters=2, min_lr=4e-4).column("learning_rate")
    assert rates == pytest.approx([1e-3, 0.7e-3, 4e-4, 4e-4])


# regularisation


@effect("weight_decay")
def test_weight_decay_shrinks_matrices_and_leaves_norms_alone(train):
    """One step of AdamW: the decay alone changes a weight by lr * decay * weight."""
    without, decayed = (trained(train(train_iters=1, to_hf=True, weight_decay=decay)) for decay in (0.0, 0.5))
    matrix, norm = "model.layers.0.mlp.down_proj.weight", "model.layers.0.input_layernorm.weight"
    assert torch.equal(without[norm], decayed[norm])
    start = without[matrix] - decayed[matrix]
    torch.testing.assert_close(start, 1e-3 * 0.5 * without[matrix], atol=1e-6, rtol=0.05)


@effect("clip_grad")
def test_clip_grad_bounds_the_update_and_logs_the_norm_before_it(train):
    free, clipped = (
        train(train_iters=1, to_hf=True, optimizer="sgd", weight_decay=0.0, clip_grad=c) for c in (1e9, 1e-3)
    )
    assert free.column("grad_norm") == clipped.column("grad_norm")
    assert free.column("grad_norm")[0] > 1e-3
    moved = math.sqrt(sum((a - b).square().sum() for a, b in zip(trained(free).values(), trained(clipped).values())))
    assert moved == pytest.approx(1e-3 * (free.column("grad_norm")[0] - 1e-3), rel=1e-2)


@effect("adam_beta1", "adam_beta2", "adam_eps")
@pytest.mark.parametrize(("name", "value"), [("adam_beta1", 0.5), ("adam_beta2", 0.5), ("adam_eps", 1e-2)])
def test_adam_settings_change_the_update_as_torch_does(train, plain, name, value):
    assert train(**{name: value}).column("lm loss")[2:] != plain.column("lm loss")[2:]


@effect("sgd_momentum", "optimizer")
def test_sgd_moves_by_the_gradient_and_momentum_adds_the_step_before(train):
    """The first two steps are w1 = w0 - lr g0 and w2 = w1 - lr (g1 + momentum g0)."""
    settings = {"optimizer": "sgd", "weight_decay": 0.0, "clip_grad": 1e9, "lr_decay_style": "constant", "to_hf": True}
    one = trained(train(train_iters=1, sgd_momentum=0.0, **settings))
    none, half = (trained(train(train_iters=2, sgd_momentum=m, **settings)) for m in (0.0, 0.5))
    name = "model.layers.0.mlp.down_proj.weight"
    start = load_file(next(iter([one]), None) and STARTING_WEIGHTS())[name]
    torch.testing.assert_close(none[name] - half[name], 0.5 * (start - one[name]), atol=1e-6, rtol=1e-3)


# evaluation


@effect("eval_interval")
def test_eval_interval_is_the_distance_of_evaluations(train, data):
    run = train(val_dataset=[str(data)], eval_interval=2, train_iters=5)
    assert [line["iteration"] for line in run.log if "eval_lm loss" in line] == [2, 4, 5]


@effect("eval_iters")
def test_eval_iters_is_the_number_of_global_batches_of_a_round(train, data):
    """-1: as many whole batches of 4 as the 18 rows hold."""

    def samples(iterations):
        run = train(val_dataset=[str(data)], eval_iters=iterations, train_iters=1)
        return [line["eval_samples"] for line in run.log if "eval_samples" in line]

    assert (samples(2), samples(-1), samples(0)) == ([8], [16], [])
