"""What a status means for a given value."""

from dataclasses import replace

import pytest

from megatron_trainjob.args.availability import by_transformer_engine, objection, without_gpu
from megatron_trainjob.args.tree import ARGUMENTS, TrainArgs


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("works", ""),
        ("works on GPU only", ""),
        ("not yet", "does not work yet; remove it or leave it at false"),
        ("refused", "is refused: it cannot"),
    ],
)
def test_value_other_than_the_default_is_accepted_only_when_the_argument_works(status, said):
    argument = replace(ARGUMENTS["manual_gc"], status=status, reason="it cannot")
    assert objection(argument, True, "sft") == said
    assert objection(argument, False, "sft") == ""


def test_default_is_that_of_the_task():
    argument = ARGUMENTS["calculate_per_token_loss"]
    assert objection(replace(argument, status="not yet"), False, "rlhf") == ""
    assert objection(replace(argument, status="not yet"), False, "sft") != ""


def test_argument_of_another_task_is_refused_where_it_is_essential():
    assert objection(ARGUMENTS["loss_types"], ("ipo",), "pt") == "applies to rlhf only and this is pt; remove it"
    assert objection(ARGUMENTS["beta"], 0.5, "pt") == ""


def test_without_a_gpu_its_arguments_are_refused(monkeypatch):
    monkeypatch.setitem(ARGUMENTS, "fp8_format", replace(ARGUMENTS["fp8_format"], status="works on GPU only"))
    monkeypatch.setitem(ARGUMENTS, "seed", replace(ARGUMENTS["seed"], status="works on GPU only"))
    found = without_gpu(TrainArgs(fp8_format="hybrid"), task="sft")
    assert [str(violation) for violation in found] == [
        "spec.args.fp8_format: works only on a GPU, which this machine lacks; remove it, or run on a GPU machine"
        " (got 'hybrid')"
    ]


def test_float32_over_context_parallel_ranks_is_refused_before_the_first_step():
    split = TrainArgs(context_parallel_size=2, torch_dtype="float32")
    (found,) = by_transformer_engine(split, is_float32=True)
    assert str(found) == (
        "spec.args.torch_dtype: float32 has no attention kernel on GPUs for context_parallel_size above 1; "
        "use bfloat16, or 1 there (got 'float32')"
    )
    assert not by_transformer_engine(split, is_float32=False)
    assert not by_transformer_engine(TrainArgs(), is_float32=True)
    assert not by_transformer_engine(replace(split, transformer_impl="local"), is_float32=True)
