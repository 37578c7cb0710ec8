"""Settings that would fit: each computed by the estimate, none refused by the rules, the least costly first."""

from dataclasses import replace

import pytest

from megatron_trainjob.args.parse import Accepted, parse
from megatron_trainjob.families import read
from megatron_trainjob.memory import estimate
from megatron_trainjob.memory.fitting import HEADROOM, proposals
from tests.support.models.model_configs import PUBLISHED

GIB = 1024**3
RANKS = 8
GIVEN = {"model": "/m", "dataset": ["/d"], "train_iters": 1, "torch_dtype": "bfloat16", "global_batch_size": 64}
MODEL = read(next(part for part in PUBLISHED["Qwen2.5-7B"] if isinstance(part, dict)))


def accepted(**given):
    parsed = parse({**GIVEN, "micro_batch_size": 4, "max_length": 8192, **given}, task="sft", world_size=RANKS)
    assert isinstance(parsed, Accepted), parsed
    return parsed


def found(gib, **given):
    return proposals(accepted(**given), MODEL, RANKS, task="sft", available_bytes=gib and round(gib * GIB))


@pytest.mark.parametrize("gib", [None, 150, 80, 60])
def test_each_proposal_fits_and_is_accepted_in_a_manifest(gib):
    before = accepted()
    now_bytes = estimate(before.args, MODEL, RANKS).peak.total
    for proposal in found(gib):
        after = accepted(**proposal.settings)
        assert after.args == replace(before.args, **proposal.settings)
        needed = estimate(after.args, MODEL, RANKS).peak.total
        assert needed == proposal.total_bytes <= HEADROOM * (now_bytes if gib is None else min(gib * GIB, now_bytes))
    assert found(gib)


def test_what_computes_the_same_comes_before_what_is_slower_or_shortens_samples():
    names = [next(iter(proposal.settings)) for proposal in found(150)]
    assert names == ["micro_batch_size", "recompute_granularity", "max_length"]
    assert found(150)[0].settings == {"micro_batch_size": 2}, "the largest that fits"


def test_an_estimate_that_was_too_low_asks_for_less_than_it_says():
    now_bytes = estimate(accepted().args, MODEL, RANKS).peak.total
    assert all(each.total_bytes <= HEADROOM * now_bytes for each in found(10_000))


def test_changes_are_combined_if_no_single_one_suffices_and_may_not_exist():
    (together,) = found(60)
    assert {"micro_batch_size", "recompute_granularity"} <= together.settings.keys()
    assert found(5) == ()


def test_a_micro_batch_on_which_the_loss_depends_is_not_proposed():
    names = [name for proposal in found(150, calculate_per_token_loss=False) for name in proposal.settings]
    assert names
    assert "micro_batch_size" not in names
