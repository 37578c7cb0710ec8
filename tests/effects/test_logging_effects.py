"""Effects of the arguments of logging, read back from what a run wrote."""

from itertools import pairwise

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.effects.registry import effect

pytestmark = pytest.mark.dist


def scalars(folder) -> dict[str, list[int]]:
    """The steps of every scalar that TensorBoard has in the folder."""
    events = EventAccumulator(str(folder)).Reload()
    return {name: [event.step for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


@effect("log_interval")
def test_log_interval_is_the_distance_of_lines_and_the_first_and_last_step_are_logged(train):
    run = train(log_interval=3, train_iters=7)
    assert [line["iteration"] for line in run.log if "lm loss" in line] == [1, 3, 6, 7]


@effect("log_total_limit")
def test_log_total_limit_thins_the_rows_evenly_and_keeps_the_first_and_the_last(train):
    short = {"train_iters": 40, "global_batch_size": 1}
    run = train(log_total_limit=16, **short)
    steps = [line["iteration"] for line in run.log if "lm loss" in line]
    assert len(run.log) < 16
    assert (steps[0], steps[-1]) == (1, 40)
    assert sum(run.column("tokens")) == sum(train(**short).column("tokens"))
    assert max(later - earlier for earlier, later in pairwise(steps)) <= 16


@effect("log_params_norm")
def test_log_params_norm_is_the_l2_norm_of_the_trained_model(train):
    run = train(log_params_norm=True, to_hf=True, train_iters=2)
    expected = torch.stack([tensor.double().square().sum() for tensor in run.weights().values()]).sum().sqrt().item()
    assert run.column("params_norm")[-1] == pytest.approx(expected, rel=1e-9)
    assert train(train_iters=1).column("params_norm") == []


@effect("log_params_norm")
def test_the_norm_is_the_same_in_every_layout(train):
    one, two = (train(log_params_norm=True, train_iters=1, lr=0.0, min_lr=0.0, ranks=ranks) for ranks in (1, 2))
    assert one.column("params_norm") == pytest.approx(two.column("params_norm"), rel=1e-9)


@effect("log_params_norm")
def test_the_norm_is_that_of_the_updated_weights_also_where_they_are_gathered_later(train):
    later = {"overlap_param_gather": True, "overlap_grad_reduce": True}
    one, two = (train(log_params_norm=True, train_iters=2, lr=0.1, ranks=2, **given) for given in ({}, later))
    assert one.column("params_norm") == pytest.approx(two.column("params_norm"), rel=1e-7)


@effect("log_throughput")
def test_log_throughput_adds_teraflops_per_gpu(train):
    assert len(train(log_throughput=True, train_iters=2).column("throughput")) == 2
    assert train(train_iters=2).column("throughput") == []


@effect("tensorboard_dir")
def test_tensorboard_dir_is_where_the_event_files_are(train, tmp_path):
    run = train(tensorboard_dir=str(tmp_path / "board"), train_iters=1)
    assert scalars(tmp_path / "board")["lm loss"] == [1]
    assert not (run.folder / "runs").exists()


@effect("tensorboard_log_interval")
def test_tensorboard_log_interval_is_the_distance_of_its_points(train):
    run = train(tensorboard_log_interval=2, train_iters=5)
    assert scalars(run.folder / "runs")["lm loss"] == [1, 2, 4, 5]


@effect("tensorboard_queue_size")
def test_tensorboard_queue_size_delays_events_and_loses_no_event(train):
    run = train(tensorboard_queue_size=1, train_iters=3)
    assert scalars(run.folder / "runs")["lm loss"] == [1, 2, 3]


@effect(
    "log_timers_to_tensorboard",
    "no_log_learning_rate_to_tensorboard",
    "log_validation_ppl_to_tensorboard",
    "log_memory_to_tensorboard",
)
@pytest.mark.parametrize(
    ("argument", "value", "scalar"),
    [
        ("log_timers_to_tensorboard", False, "forward-backward-time"),
        ("no_log_learning_rate_to_tensorboard", True, "learning-rate"),
        ("log_validation_ppl_to_tensorboard", False, "lm loss validation ppl"),
        ("log_memory_to_tensorboard", False, "mem"),
    ],
)
def test_a_group_of_scalars_can_be_left_out(train, data, argument, value, scalar):
    settings = {"train_iters": 1, "val_dataset": [str(data)]}
    everything = scalars(train(**settings).folder / "runs")
    without = scalars(train(**settings, **{argument: value}).folder / "runs")
    missing = everything.keys() - without.keys()
    assert any(name.startswith(scalar) for name in missing), (sorted(missing), sorted(everything))
    assert {"lm loss", "grad-norm"} <= without.keys()


@effect("logging_level")
@pytest.mark.parametrize(("level", "speaks"), [(None, True), ("WARNING", False)])
def test_logging_level_decides_which_lines_are_printed(train, level, speaks):
    run = train(train_type="lora", train_iters=1, logging_level=level, as_program=True)
    assert ("INFO rank 0 added adapters" in run.output) is speaks
