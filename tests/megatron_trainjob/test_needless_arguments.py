"""Arguments that ask for nothing: accepted, with one warning where an effect was hoped for, and read by nothing."""

import pytest

from megatron_trainjob.args import fulfilled
from megatron_trainjob.args.parse import parse
from megatron_trainjob.args.tree import ARGUMENTS
from tests.support.arguments.rule_cases import DENSE, EXPERTS
from tests.support.arguments.typical_values import RUNS, typical

RUN = {"model": "m", "dataset": ["d"], "train_iters": 10}


@pytest.mark.parametrize(
    ("given", "task"),
    [({"beta": 0.2, "ref_load": "/r", "loss_weights": [2.0]}, "sft"), ({"test_convert_precision": True}, "pt")]
    + [({"mtp_loss_scaling_factor": 0.5}, "rlhf")],
)
def test_a_detail_of_another_task_is_accepted_and_nothing_can_read_it(given, task):
    plain, parsed = parse(RUN, task=task), parse({**RUN, **given}, task=task)
    assert (parsed.args, parsed.given) == (plain.args, plain.given)
    assert [each.path for each in parsed.warnings] == [f"spec.args.{name}" for name in given]
    assert all(each.message.startswith("has no effect: it applies to ") for each in parsed.warnings)
    assert parse({"to_mcore": True, "model": "/m", "lr": 1e-4}, task="export").violations == ()


@pytest.mark.parametrize(
    ("given", "task"),
    [({"rlhf_type": "dpo"}, "sft"), ({"rlhf_type": "kto"}, "pt"), ({"to_mcore": True}, "sft")]
    + [({"loss_types": ["sft"]}, "sft"), ({"mtp_num_layers": 1}, "rlhf"), ({"quant_method": "fp8"}, "sft")],
)
def test_what_makes_it_another_task_is_refused_even_where_it_is_a_default(given, task):
    (problem,) = parse({**RUN, **given}, task=task).violations
    assert problem.message.startswith("applies to ")
    assert problem.message.endswith("; remove it")


@pytest.mark.parametrize("value", ["kto", "rm"])
def test_an_export_names_a_preference_task_for_data_alone(value):
    (problem,) = parse({"to_hf": True, "mcore_model": "/m", "rlhf_type": value}, task="export").violations
    assert problem.path == "spec.args.rlhf_type"
    assert problem.message.endswith("set to_cached_dataset, or remove it")
    tokenized = parse({"to_cached_dataset": True, "model": "/m", "dataset": ["d"], "rlhf_type": value}, task="export")
    assert (tokenized.violations, "rlhf_type" in tokenized.given) == ((), True)


LORA_DPO = {**RUN, "train_type": "lora", "load": "/c"}
RM = {**RUN, "rlhf_type": "rm"}
DONE_ANYWAY = [
    ({**RUN, "context_parallel_size": 2}, {"sequence_parallel_size": 2}, {"sequence_parallel_size": 4}, "sft"),
    (RUN, {"mtp_num_layers": 0}, {"mtp_num_layers": -1}, "sft"),
    (RUN, {"mtp_num_layers": 0}, {"mtp_num_layers": 1}, "rlhf"),
    ({"model": "/m", "to_mcore": True}, {"mtp_num_layers": 0}, {"mtp_num_layers": -1}, "export"),
    (LORA_DPO, {"ref_load": "/c"}, {"ref_load": "/other"}, "rlhf"),
    ({**RUN, "loss_type": "hinge"}, {"loss_types": ["hinge"]}, {"loss_types": ["ipo"]}, "rlhf"),
    (RM, {"num_labels": 1}, {"num_labels": 2}, "rlhf"),
    (RM, {"task_type": "seq_cls", "num_labels": 1}, {"task_type": "reranker"}, "rlhf"),
    (
        {"model": "/m", "quant_method": "fp8", "to_hf": True},
        {"merge_lora": False},
        {"merge_lora": False, "mcore_adapters": ["/a"]},
        "export",
    ),
]


@pytest.mark.parametrize(("run", "same", "other", "task"), DONE_ANYWAY, ids=lambda each: "-".join(each))
def test_a_request_for_what_is_done_anyway_is_accepted_and_another_one_is_not(run, same, other, task):
    plain, parsed = parse(run, task=task), parse({**run, **same}, task=task)
    assert (parsed.args, parsed.given, parsed.warnings) == (plain.args, plain.given, plain.warnings)
    assert parse({**run, **other}, task=task).violations


def test_every_request_that_may_be_fulfilled_has_a_case():
    assert {each.name for each in fulfilled.REQUESTS} <= {name for _, same, _, _ in DONE_ANYWAY for name in same}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tp_comm_overlap": True}, "has no effect: it only affects speed"),
        ({"moe_enable_deepep": True}, "has no effect: the trainer image does not contain"),
        ({"fp8_recipe": "mxfp8"}, "has no effect without fp8_format"),
        ({"fp8_param_gather": True}, "has no effect: compute parameters stay in 16 bits"),
    ],
)
def test_no_fact_is_told_twice(given, said):
    (warning,) = parse({**RUN, **given}, task="sft").warnings
    assert warning.message.startswith(said)


@pytest.mark.parametrize("task", ["pt", "sft", "rlhf"])
@pytest.mark.parametrize("config", [None, DENSE, EXPERTS], ids=["model unknown", "dense", "experts"])
def test_of_one_argument_at_most_one_reason_why_it_has_no_effect_is_given(task, config):
    """And no remark about a value that has none."""
    for argument in ARGUMENTS.values():
        for value in typical(argument) if task in argument.applies_to else ():
            found = parse({**RUNS[task], argument.name: value}, task=task, hf_config=config).warnings
            told = [each.message for each in found if each.path == f"spec.args.{argument.name}"]
            assert len(told) <= 1 or not any(each.startswith("has no effect") for each in told), told
