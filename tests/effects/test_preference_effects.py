"""What the arguments of preference training do: on the first step, where policy and reference are one, in numbers."""

import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from megatron_trainjob.args.parse import parse
from tests.effects.registry import effect
from tests.support.data import preference_data
from tests.support.models import tiny_model
from tests.support.ranks import tiny_run

pytestmark = pytest.mark.dist

LN2 = math.log(2)
KTO = {"rlhf_type": "kto", "micro_batch_size": 4, "global_batch_size": 4}
LORA = {"train_type": "lora", "lora_rank": 4, "lora_dropout": 0.0, "lr": 1e-2}


@pytest.fixture(scope="module")
def prefer(llama, tmp_path_factory):
    """prefer(**arguments): two steps of DPO; the same run is made once."""
    root = tmp_path_factory.mktemp("preference")
    data = preference_data.write(root / "pairs.jsonl", 8)

    @cache
    def run(**given):
        save = Path(given.pop("save", root / f"run{len(list(root.glob('run*')))}"))
        in_order = {"dataset_shuffle": False, "dataloader_type": "single"}
        settings = {"train_iters": 2, "global_batch_size": 2, **in_order, **given}
        settings = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
        made = tiny_run.train(tiny_run.arguments(llama, data, save, **settings), task="rlhf")
        assert made.exit_code == 0, made.message
        return made

    return run


@effect("rlhf_type")
def test_rlhf_type_knows_its_algorithms(prefer):
    """Where policy and reference are one, dpo's loss is -log s(0), that of kto 1 - s(0)."""
    assert prefer(rlhf_type="dpo").column("loss") == prefer().column("loss")
    assert prefer(**KTO).column("loss")[0] == pytest.approx(0.5, abs=1e-6)
    for wrong, said in (("grpo", "this trainer generates nothing"), ("dpoo", "must be one of dpo")):
        given = {"model": "m", "dataset": ["d"], "train_iters": 1, "rlhf_type": wrong}
        (problem,) = parse(given, task="rlhf").violations
        assert said in problem.message


@pytest.mark.parametrize(
    "given",
    [{"reference_free": True}, {"rlhf_type": "kto", "loss_type": "apo_zero_unpaired", "lr": 0.1}, {"rlhf_type": "rm"}],
    ids=["dpo", "kto", "rm"],
)
def test_an_evaluation_gives_every_answer_the_same_weight_whatever_the_micro_batches(prefer, tmp_path, given):
    """Five pairs in micro-batches of 1 and of 4, of which the last is short."""
    held = (str(preference_data.write(tmp_path / "held.jsonl", 5)),)
    common = {"val_dataset": held, "eval_interval": 2, "global_batch_size": 4, "min_lr": 0.1 * ("lr" in given), **given}
    one, four = (prefer(micro_batch_size=size, **common).column("eval_loss") for size in (1, 4))
    assert one == pytest.approx(four, rel=1e-5)


@effect("beta")
def test_beta_scales_the_margin_and_so_the_first_gradient(prefer):
    plain, strong = prefer(), prefer(beta=0.2)
    assert plain.column("loss")[0] == strong.column("loss")[0] == pytest.approx(LN2, abs=1e-6)
    assert strong.column("grad_norm")[0] == pytest.approx(2 * plain.column("grad_norm")[0], rel=1e-4)


@effect("loss_type")
@pytest.mark.parametrize(
    ("name", "first"),
    [
        pytest.param("hinge", 1.0, marks=pytest.mark.slow),
        ("ipo", 25.0),
        ("bco_pair", 2 * LN2),
        pytest.param("nca_pair", 2 * LN2, marks=pytest.mark.slow),
        pytest.param("sppo_hard", 50.0, marks=pytest.mark.slow),
        ("apo_zero", 1),
    ],
)
def test_loss_type_chooses_the_loss(prefer, name, first):
    """All log-ratios are 0: hinge 1, ipo (1 / 0.2)^2, sppo 2 * 5^2, each a value that sigmoid has not."""
    assert prefer(loss_type=name).column("loss")[0] == pytest.approx(first, rel=1e-5)


@effect("loss_types", "loss_weights")
def test_several_losses_are_added_with_their_weights(prefer):
    assert prefer(loss_types=("sigmoid", "hinge")).column("loss")[0] == pytest.approx(LN2 + 1, rel=1e-5)
    weighted = prefer(loss_types=("sigmoid", "hinge"), loss_weights=(2.0, 3.0))
    assert weighted.column("loss")[0] == pytest.approx(2 * LN2 + 3, rel=1e-5)


@effect("center_rewards_coefficient")
def test_centering_adds_the_squared_sum_of_the_scores(prefer):
    """In a step of one pair: a (c + r)^2."""
    plain, centered = (
        prefer(rlhf_type="rm", global_batch_size=1, **given) for given in ({}, {"center_rewards_coefficient": 0.5})
    )
    total = plain.column("rewards/chosen")[0] + plain.column("rewards/rejected")[0]
    assert abs(total) > 1e-3
    assert centered.column("loss")[0] - plain.column("loss")[0] == pytest.approx(0.5 * total**2, rel=1e-3)


@effect("desirable_weight", "undesirable_weight")
def test_weights_scale_the_losses_of_good_and_of_bad_answers(prefer, tmp_path):
    """Half of the answers are good ones; the loss of each is its weight / 2."""
    given = {**KTO, "dataset": (str(preference_data.write_singles(tmp_path / "answers.jsonl", 8)),)}
    plain = prefer(**given)
    good = prefer(**given, desirable_weight=3.0)
    bad = prefer(**given, undesirable_weight=2.0)
    assert [run.column("loss")[0] for run in (plain, good, bad)] == pytest.approx([0.5, 1.0, 0.75], abs=1e-5)
    assert good.column("rewards/chosen")[1] > plain.column("rewards/chosen")[1]


@pytest.mark.slow
def test_apo_zero_unpaired_estimates_no_divergence(prefer):
    plain, apo = prefer(**KTO), prefer(**KTO, loss_type="apo_zero_unpaired")
    assert apo.column("loss")[0] == plain.column("loss")[0]
    assert len(plain.column("kl")) == 2
    assert not apo.column("kl")


@effect("label_smoothing")
def test_label_smoothing_weakens_the_first_gradient(prefer):
    smooth = prefer(label_smoothing=0.1)
    assert smooth.column("grad_norm")[0] == pytest.approx(0.8 * prefer().column("grad_norm")[0], rel=1e-4)


@effect("f_divergence_type", "f_alpha_divergence_coef")
def test_a_divergence_changes_the_scores(prefer):
    """Where policy and reference agree, the slope of the Jensen-Shannon score is a half, of the others 1."""
    plain = prefer()
    jensen = prefer(f_divergence_type="js_divergence")
    assert jensen.column("grad_norm")[0] == pytest.approx(0.5 * plain.column("grad_norm")[0], rel=1e-4)
    half, other = (prefer(f_divergence_type="alpha_divergence", f_alpha_divergence_coef=c) for c in (0.5, -1.0))
    assert half.column("grad_norm")[0] == pytest.approx(other.column("grad_norm")[0], rel=1e-4)
    assert half.column("loss")[1] != other.column("loss")[1]


@effect("discopop_tau")
def test_discopops_temperature_changes_its_slope(prefer):
    """At margin 0 the blend is even whatever the temperature; its slope is not."""
    sharp, soft = prefer(loss_type="discopop"), prefer(loss_type="discopop", discopop_tau=1.0)
    assert sharp.column("loss")[0] == pytest.approx(soft.column("loss")[0], rel=1e-5)
    assert sharp.column("grad_norm")[0] != pytest.approx(soft.column("grad_norm")[0], rel=0.01)


@effect("rpo_alpha")
def test_rpo_adds_the_loss_of_the_chosen_answers(prefer):
    run = prefer(rpo_alpha=0.5)
    assert run.column("loss")[0] == pytest.approx(LN2 + 0.5 * run.column("nll_loss")[0], rel=1e-5)
    assert "nll_loss" not in prefer().log[0]


@effect("reference_free")
def test_without_a_reference_rewards_are_log_probabilities(prefer):
    run = prefer(reference_free=True)
    assert run.column("rewards/chosen")[0] == pytest.approx(0.1 * run.column("logps/chosen")[0], rel=1e-5)
    assert prefer().column("rewards/chosen")[0] == pytest.approx(0, abs=1e-5)


@effect("ref_load")
def test_ref_load_is_another_reference(prefer, tmp_path):
    """Rewards of the first step: beta times the difference of both models' log-probabilities."""
    first, trained = prefer(), prefer(lr=1e-2)
    again = prefer(load=str(trained.folder), finetune=True)
    compared = prefer(ref_load=str(trained.folder))
    for name in ("chosen", "rejected"):
        difference = first.column(f"logps/{name}")[0] - again.column(f"logps/{name}")[0]
        assert compared.column(f"rewards/{name}")[0] == pytest.approx(0.1 * difference, abs=1e-4)
        assert abs(difference) > 0.1
    for name in ("chosen", "rejected"):
        single = {**KTO, "global_batch_size": 8}
        of_singles = prefer(**single, ref_load=str(trained.folder)).column(f"rewards/{name}")[0]
        assert abs(of_singles) > 0.01, "kto has the same reference"
    assert again.column("rewards/margins")[0] == pytest.approx(0, abs=1e-5), "load is the reference too"
    other = prefer(ref_load=str(tiny_model.make("llama", tmp_path, seed=2, num_hidden_layers=2)))
    assert abs(other.column("rewards/margins")[0]) > 0.1


@effect("ref_adapter_load")
def test_ref_adapter_load_is_another_reference(prefer):
    trained = prefer(**LORA)
    for adapter in (trained.folder, trained.folder / "adapter"):
        own = prefer(**LORA, adapter_load=str(adapter), finetune=True)
        same = prefer(**LORA, adapter_load=str(adapter), ref_adapter_load=str(adapter), finetune=True)
        assert same.column("logps/chosen")[0] == pytest.approx(own.column("logps/chosen")[0], abs=1e-4)
        assert same.column("rewards/margins")[0] == pytest.approx(0, abs=1e-5)
        assert abs(own.column("rewards/margins")[0]) > 1e-3, "the reference is the model without adapters"


@effect("precompute_ref_log_probs")
@pytest.mark.parametrize("tuner", [pytest.param({}, marks=pytest.mark.slow), LORA])
def test_what_the_reference_says_is_kept_on_disk(prefer, tuner, tmp_path):
    """The same numbers as with a reference that is asked each step; once from disk even without its weights."""
    common = {"lr": 1e-3, "val_dataset": (str(preference_data.write(tmp_path / "held.jsonl", 3)),), "eval_interval": 2}
    given = {**tuner, **common}
    asked = prefer(**given)
    known = prefer(**given, precompute_ref_log_probs=True, save=str(tmp_path / "known"))
    for name in ("loss", "rewards/margins", "eval_rewards/margins"):
        assert known.column(name) == pytest.approx(asked.column(name), abs=1e-4), name
    kept = sorted((tmp_path / "known").rglob("reference/*.npy"))
    assert len(kept) == 2
    halved = [np.load(path) / 2 for path in kept]
    for path, values in zip(kept, halved, strict=True):
        np.save(path, values)
    assert known.folder == tmp_path / "known"
    again = prefer(**given, precompute_ref_log_probs=True, save=str(tmp_path / "known"), seed=42)
    assert again.column("rewards/chosen")[0] == pytest.approx(0.1 * again.column("logps/chosen")[0] / 2, abs=1e-3)
