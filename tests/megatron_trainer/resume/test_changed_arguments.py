"""A run that goes on with other arguments: each takes effect and is logged, or is refused with both values."""

import pytest

from tests.support.arguments.changes_on_resume import TAKE_EFFECT, follows, name_of, same_loss
from tests.support.matrix import mostly_slow
from tests.support.models import tiny_model
from tests.support.ranks.resumed_runs import LORA, assert_logged, assert_refused, base
from tests.support.ranks.tiny_run import write_data

pytestmark = [pytest.mark.dist, pytest.mark.timeout(600)]
QUICK = ("lr", "train_iters", "weight_decay", "global_batch_size", "dataset", "loss_scale", "async_save")
"""Arguments whose changes `make test` tries; the others' are slow."""


@pytest.mark.parametrize(
    ("changed", "takes_effect"),
    mostly_slow(TAKE_EFFECT, [case for case in TAKE_EFFECT if not case[0].keys().isdisjoint(QUICK)]),
    ids=name_of,
)
def test_a_changed_argument_takes_effect_and_is_logged_with_the_step_from_which_it_holds(
    full, tmp_path, changed, takes_effect
):
    other = [str(write_data(tmp_path / "other.jsonl", rows=9))]
    changed = {name: other if value == "DATA" else value for name, value in changed.items()}
    found = full.go_on(tmp_path, changed)
    assert (found.run.exit_code, found.run.message) == (0, "")
    assert found.run.column("lm loss")[:2] == full.run.column("lm loss")[:2]
    assert takes_effect(found, full.run)
    assert_logged(found, changed)


def test_the_number_of_steps_of_the_optimizer_goes_on_with_other_rates(full, tmp_path):
    """Adam corrects its moments by it: counted again, the first steps would be many times too large."""
    assert full.go_on(tmp_path, {"lr": 5e-4}).steps == {4.0}


def test_nothing_is_logged_of_a_run_that_goes_on_as_it_was(full, tmp_path):
    found = full.go_on(tmp_path, {})
    assert [line for line in found.warnings if line.startswith("from step")] == []
    assert found.run.column("lm loss") == full.run.column("lm loss")


def test_another_layout_is_logged_too_and_goes_on_with_the_same_losses(full, tmp_path):
    changed = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
    found = full.go_on(tmp_path, changed, ranks=2)
    assert same_loss(found, full.run)
    assert_logged(found, changed)


def test_another_optimizer_goes_on_without_the_saved_state_when_asked_to(full, tmp_path):
    changed = {"optimizer": "sgd", "use_distributed_optimizer": False, "no_load_optim": True}
    found = full.go_on(tmp_path, changed)
    assert (found.run.exit_code, found.run.message) == (0, "")
    assert found.run.column("lm loss")[2] == full.run.column("lm loss")[2]
    assert_logged(found, {"optimizer": "sgd"})


@pytest.mark.parametrize(
    ("changed", "before"),
    [
        (
            {"optimizer": "sgd", "use_distributed_optimizer": False},
            {"optimizer": "adam", "use_distributed_optimizer": True},
        ),
        ({"use_distributed_optimizer": False}, {"use_distributed_optimizer": True}),
        ({"freeze_parameters_ratio": 0.5}, {"freeze_parameters_ratio": 0.0}),
        ({"train_type": "lora", "lora_rank": 2}, {"train_type": "full", "lora_rank": 8}),
        ({"norm_epsilon": 1e-3, "rotary_base": 500}, {"norm_epsilon": None, "rotary_base": None}),
    ],
    ids=name_of,
)
def test_what_cannot_change_is_refused_with_both_values_all_at_once_and_never_retried(full, tmp_path, changed, before):
    assert_refused(full, full.go_on(tmp_path, changed), changed, before)


@pytest.mark.parametrize(
    ("changed", "before"),
    [({"torch_dtype": "bfloat16"}, {"torch_dtype": "float32"}), ({"sgd_momentum": 0.9}, {"sgd_momentum": 0.0})],
    ids=name_of,
)
def test_what_an_optimizer_that_is_not_distributed_has_not_saved_is_refused_and_can_be_left_out(
    undistributed, tmp_path, changed, before
):
    """Main parameters beside 16 bits, and momenta."""
    assert_refused(undistributed, undistributed.go_on(tmp_path / "refused", changed), changed, before)
    found = undistributed.go_on(tmp_path / "without", {**changed, "no_load_optim": True})
    assert (found.run.exit_code, found.run.message) == (0, "")


def test_adapters_go_on_with_other_rates_and_dropout(lora, tmp_path):
    changed = {"lr": 5e-4, "lora_dropout": 0.5}
    found = lora.go_on(tmp_path, changed)
    assert (found.run.exit_code, found.run.message) == (0, "")
    assert follows(peak=5e-4)(found, None)
    assert found.run.column("lm loss")[2] != lora.run.column("lm loss")[2]
    assert_logged(found, changed)


@pytest.mark.parametrize(
    "changed",
    [{"lora_rank": 2, "lora_alpha": 32}, {"target_modules": ["linear_fc1"], "use_rslora": True}],
    ids=name_of,
)
def test_adapters_of_another_shape_or_scale_are_refused(lora, tmp_path, changed):
    before = {**LORA, "target_modules": ["all-linear"], "use_rslora": False}
    assert_refused(lora, lora.go_on(tmp_path, changed), changed, before)


def test_experts_go_on_with_other_losses_and_capacity(model_root, tmp_path_factory, tmp_path):
    model = tiny_model.make("qwen3_moe", model_root, num_hidden_layers=2)
    experts = base(model, tmp_path_factory.mktemp("experts"), global_batch_size=2)
    changed = {"moe_aux_loss_coeff": 0.1, "moe_z_loss_coeff": 0.1, "moe_router_dtype": "fp64"}
    changed |= {"moe_router_load_balancing_type": "aux_loss", "moe_expert_capacity_factor": 1.0}
    found = experts.go_on(tmp_path / "losses", changed)
    assert (found.run.exit_code, found.run.message) == (0, "")
    assert found.run.column("grad_norm")[2] != experts.run.column("grad_norm")[2]
    assert_logged(found, changed)
    changed = {"moe_router_topk": 3}
    assert_refused(experts, experts.go_on(tmp_path / "topk", changed), changed, {"moe_router_topk": None})
