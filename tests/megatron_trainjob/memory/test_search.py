"""The fastest settings that fit: compared with measured steps, never refused, and none faster left out."""

from dataclasses import replace

import pytest

from benchmarks.gpu.shapes import EXPERTS, SHAPE
from megatron_trainjob.args.parse import Accepted, parse
from megatron_trainjob.families import read
from megatron_trainjob.memory import estimate
from megatron_trainjob.memory.fitting import HEADROOM
from megatron_trainjob.memory.search import Search
from megatron_trainjob.memory.speed import step_seconds
from tests.support.models.model_configs import PUBLISHED

GIB = 1024**3
GIVEN = {"model": "/m", "dataset": ["/d"], "train_iters": 1, "torch_dtype": "bfloat16", "packing": True}
SEVEN_BILLION = read(next(part for part in PUBLISHED["Qwen2.5-7B"] if isinstance(part, dict)))
MIXTURE = read(next(part for part in PUBLISHED["Qwen3-30B-A3B"] if isinstance(part, dict)))
MEASURED = {
    "dense": (SHAPE, {(4, 8): 45_600, (2, 8): 42_500}),
    "experts": (EXPERTS, {(8, 8): 65_935, (4, 8): 48_340, (2, 8): 24_230}),
}
"""Packed tokens a second by (micro-batch, global batch): benchmarks/results/gpu-2026-11-24.md and gpu-2026-11-28.md."""


def accepted(world_size=8, **given):
    length = {"max_length": 4096, "micro_batch_size": 4, "global_batch_size": 64}
    parsed = parse({**GIVEN, **length, **given}, task="sft", world_size=world_size)
    assert isinstance(parsed, Accepted), parsed
    return parsed


def search(world_size=8, shape=SEVEN_BILLION, **given):
    return Search(accepted=accepted(world_size, **given), shape=shape, world_size=world_size, task="sft")


def seconds(shape, world_size=1, **given):
    args = accepted(world_size, **given).args
    return step_seconds(args, shape, world_size, estimate(args, shape, world_size), task="sft")


@pytest.mark.parametrize("name", MEASURED)
def test_the_estimated_speed_is_within_a_tenth_of_the_measured_one(name):
    config, measured = MEASURED[name]
    for (micro_batch, batch), tokens_per_second in measured.items():
        estimated = batch * 4096 / seconds(read(config), micro_batch_size=micro_batch, global_batch_size=batch)
        assert estimated == pytest.approx(tokens_per_second, rel=0.1), (micro_batch, batch)


def test_recomputation_costs_a_third_of_a_full_step_and_more_of_one_with_adapters():
    full = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    assert seconds(SEVEN_BILLION, **full) / seconds(SEVEN_BILLION) == pytest.approx(1.31, abs=0.03)
    adapters = {"train_type": "lora"}
    assert seconds(SEVEN_BILLION, **full, **adapters) / seconds(SEVEN_BILLION, **adapters) == pytest.approx(
        1.45, abs=0.03
    )
    part = {**full, "recompute_method": "block", "recompute_num_layers": 14}
    assert seconds(SEVEN_BILLION) < seconds(SEVEN_BILLION, **part) < seconds(SEVEN_BILLION, **full)


@pytest.mark.parametrize("gib", [40, 80, 141])
@pytest.mark.parametrize("case", [{}, {"train_type": "lora"}, {"tensor_model_parallel_size": 2}, {"shape": MIXTURE}])
def test_what_is_found_fits_is_accepted_in_a_manifest_and_nothing_faster_fits(case, gib):
    if "shape" in case:
        case = {**case, "expert_model_parallel_size": 8}
    given = {name: value for name, value in case.items() if name != "shape"}
    searched = search(**case)
    found = searched.run(gib * GIB)
    assert (found.fastest is None) == (found.smallest.total_bytes > HEADROOM * gib * GIB)
    for each in filter(None, (found.fastest, found.unrounded)):
        after = accepted(**{**given, **each.settings})
        assert after.args == replace(searched.accepted.args, **each.settings)
        assert estimate(after.args, searched.shape, 8).peak.total == each.total_bytes <= HEADROOM * gib * GIB
    faster = [each for each in searched._candidates if found.fastest and each.seconds < found.fastest.seconds]
    assert not any(each.fits(gib * GIB) for each in faster)


def test_more_memory_is_never_slower_and_recomputes_no_more():
    found = [search().run(gib * GIB).fastest for gib in (60, 80, 96, 141, 192)]
    speeds = [each.seconds for each in found if each]
    assert len(speeds) == 5
    assert speeds == sorted(speeds, reverse=True)
    assert speeds[0] > speeds[-1]
    assert "recompute_granularity" in found[0].settings
    assert "recompute_granularity" not in found[-1].settings


def test_rounded_moments_are_said_and_the_best_without_them_stands_beside():
    found = search().run(80 * GIB)
    assert found.fastest.is_rounded
    assert not found.unrounded.is_rounded
    assert found.unrounded.seconds >= found.fastest.seconds
    assert search(train_type="lora").run(80 * GIB).unrounded is None


def test_a_manifest_that_is_already_the_fastest_stays_and_one_that_is_too_large_for_everything_finds_nothing():
    best = search().run(80 * GIB).fastest.settings
    assert search(**best).run(80 * GIB).fastest.settings == {}
    nothing = search().run(20 * GIB)
    assert nothing.fastest is None
    assert nothing.smallest.total_bytes > HEADROOM * 20 * GIB


@pytest.mark.parametrize(
    ("given", "is_free"),
    [
        ({}, True),
        ({"calculate_per_token_loss": False}, False),
        ({"task_type": "embedding"}, False),
        ({"task_type": "embedding", "infonce_use_batch": False}, True),
        ({"task_type": "embedding", "loss_type": "online_contrastive"}, False),
        ({"task_type": "embedding", "loss_type": "contrastive"}, True),
        ({"rlhf_type": "dpo"}, True),
        ({"rlhf_type": "dpo", "loss_type": "aot_pair"}, False),
        ({"rlhf_type": "kto"}, False),
        ({"rlhf_type": "kto", "loss_type": "apo_zero_unpaired"}, True),
    ],
)
def test_the_micro_batch_stays_where_the_loss_depends_on_it(given, is_free):
    task = "rlhf" if "rlhf_type" in given else "sft"
    parsed = parse({**GIVEN, "micro_batch_size": 4, "global_batch_size": 64, **given}, task=task, world_size=8)
    assert isinstance(parsed, Accepted), parsed
    found = Search(accepted=parsed, shape=SEVEN_BILLION, world_size=8, task=task).run(10_000 * GIB)
    assert ("micro_batch_size" in found.unlimited.settings) == is_free
