"""Pairs of arguments with values that somebody may write: a refusal has a remedy, a warning is about what is given."""

import re

import pytest

from megatron_trainjob.args.field import TRAINING_TASKS
from megatron_trainjob.args.parse import parse
from megatron_trainjob.args.tree import ARGUMENTS
from tests.support.arguments.typical_values import RUNS, pairs

SEED = 20261129
REMEDY = re.compile(
    r"\b(set|use|remove|change|write|pass|map|put|weight|freeze|leave|load|add|known are|must be|expects|decides)\b"
)
RANKS = (None, 1, 8)


@pytest.mark.parametrize("task", TRAINING_TASKS)
def test_the_run_alone_is_accepted(task):
    assert parse(RUNS[task], task=task, world_size=8).violations == ()


@pytest.mark.parametrize("task", TRAINING_TASKS)
def test_a_pair_of_arguments_is_accepted_or_answered_with_field_value_and_remedy(task):
    refused = warned = 0
    for index, given in enumerate(pairs(task, count=900, seed=SEED)):
        found = parse(given, task=task, world_size=RANKS[index % len(RANKS)])
        named = [name for name, value in given.items() if value != RUNS[task].get(name)]
        for problem in found.violations:
            refused += 1
            assert problem.path.removeprefix("spec.args.") in ARGUMENTS, (given, problem)
            assert any(name in str(problem) or str(given[name]) in str(problem) for name in named), str(problem)
            assert REMEDY.search(problem.message), (given, str(problem))
        for remark in found.warnings:
            warned += 1
            assert remark.path.removeprefix("spec.args.") in given, (given, str(remark))
            assert given[remark.path.removeprefix("spec.args.")] is not None
            assert re.search(r"(?<!no )\w+ has no effect", remark.message) is None, str(remark)
    assert refused > 100
    assert warned > 300
