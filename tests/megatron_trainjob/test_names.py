"""Names of other versions and trainers, and misspelt ones."""

import pytest

from megatron_trainjob.args.names import ALIASES, ELSEWHERE, Alias, find_alias, nearest
from megatron_trainjob.args.tree import ARGUMENTS


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("lrr", "lr"),
        ("tensor_parallel_size", "tensor_model_parallel_size"),
        ("micro_batchsize", "micro_batch_size"),
        ("lora-rank", "lora_rank"),
        ("LR", "lr"),
        ("learning_rate", "lr"),
        ("gradient_accumulation_steps", "global_batch_size"),
        ("max_lenght", "max_length"),
        ("recompute_granulartiy", "recompute_granularity"),
        ("save_step", "save_steps"),
        ("xyzzy", None),
    ],
)
def test_nearest_name_is_the_one_that_was_meant(written, meant):
    assert nearest(written, "sft") == meant


def test_nearest_name_is_one_of_the_task():
    assert nearest("rpo_alfa", "rlhf") == "rpo_alpha"
    assert nearest("rpo_alfa", "sft") != "rpo_alpha"


def test_a_name_is_an_alias_only_where_it_is_not_an_argument():
    assert find_alias("output_dir", "sft") == Alias(canonical="save", inverted=False)
    assert find_alias("output_dir", "export") is None


def test_aliases_and_names_of_other_trainers_lead_to_arguments():
    assert {alias.canonical for alias in ALIASES.values()} <= set(ARGUMENTS)
    assert set(ELSEWHERE.values()) <= set(ARGUMENTS)
    assert not set(ELSEWHERE) & set(ARGUMENTS)
