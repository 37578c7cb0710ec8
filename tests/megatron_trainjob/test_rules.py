"""Every rule accepts what is right, rejects what is wrong, and reads only what it says it reads."""

import dataclasses
from collections import Counter

import pytest

from megatron_trainjob import families
from megatron_trainjob.args.parse import task_defaults
from megatron_trainjob.args.rules import RULES, check
from megatron_trainjob.args.rules.check import TOPICS
from megatron_trainjob.args.rules.rule import Facts
from megatron_trainjob.args.tree import ARGUMENTS, TrainArgs
from tests.support.arguments.rule_cases import CASES, RULES_WITHOUT_CASE
from tests.support.models import tiny_model

IDS = [f"{case.rule}-{index}" for index, case in enumerate(CASES)]


class Watched:
    """Stands for TrainArgs and remembers which arguments were read."""

    def __init__(self, args):
        self._args, self.read = args, set()

    def __getattr__(self, name):
        self.read.add(name)
        return getattr(self._args, name)


def arguments(case, values):
    return TrainArgs(**{**task_defaults(case.task), **values})


def facts(case, values, config):
    return Facts(
        args=Watched(arguments(case, values)),
        given=frozenset({*values, *case.given}),
        task=case.task,
        world_size=case.world_size,
        hf_config=config,
    )


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_rule_accepts_what_keeps_it(case):
    assert RULES[case.rule].broken(facts(case, case.good, case.config)) == ""


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_rule_rejects_what_breaks_it_and_check_reports_it(case):
    config = case.bad_config or case.config
    message = RULES[case.rule].broken(facts(case, case.bad, config))
    args = arguments(case, case.bad)
    found = check(
        args,
        frozenset({*case.bad, *case.given}),
        task=case.task,
        world_size=case.world_size,
        hf_config=config,
        path="spec.args",
    )
    blamed = RULES[case.rule].about[0]
    assert message
    assert (f"spec.args.{blamed}", getattr(args, blamed), message) in [
        (violation.path, violation.value, violation.message) for violation in found
    ]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_rule_reads_only_the_arguments_it_is_about(case):
    rule = RULES[case.rule]
    for values, config in ((case.good, case.config), (case.bad, case.bad_config or case.config)):
        watched = facts(case, values, config)
        rule.broken(watched)
        assert watched.args.read <= set(rule.about)


def test_every_rule_has_an_accepting_and_a_rejecting_case():
    assert not RULES_WITHOUT_CASE


def test_rule_names_are_unique():
    counts = Counter(rule.name for topic in TOPICS for rule in topic.RULES)
    assert [name for name, count in counts.items() if count > 1] == []


def test_every_rule_is_about_arguments_that_exist():
    assert {name for rule in RULES.values() for name in rule.about} <= set(ARGUMENTS)


@pytest.mark.parametrize("task", ["pt", "sft", "rlhf"])
def test_the_smallest_sensible_input_breaks_no_rule(task):
    args = TrainArgs(**task_defaults(task), model="m", dataset=("d",), train_iters=10)
    sizes = {"num_hidden_layers": 12, "hidden_size": 64, "num_attention_heads": 8, "intermediate_size": 256}
    config = {"model_type": "llama", **sizes}
    assert check(args, frozenset(), task=task, world_size=2, hf_config=config) == ()


def test_rules_that_need_unknown_facts_are_skipped():
    args = TrainArgs(model="m", dataset=("d",), train_iters=1, tensor_model_parallel_size=7)
    assert check(args, frozenset(), task="sft") == ()


def test_rules_about_a_malformed_argument_are_skipped():
    args = dataclasses.replace(TrainArgs(model="m", dataset=("d",), train_iters=1), fp16=True, bf16=True)
    assert check(args, frozenset(), task="sft", broken=frozenset({"bf16"})) == ()


def test_batch_message_names_the_factors_and_the_nearest_sizes():
    args = TrainArgs(
        model="m",
        dataset=("d",),
        train_iters=1,
        global_batch_size=10,
        micro_batch_size=2,
        tensor_model_parallel_size=2,
    )
    found = check(args, frozenset(), task="sft", world_size=8)
    assert [str(violation) for violation in found] == [
        "spec.args.global_batch_size: must be a multiple of micro_batch_size * data-parallel size = 2 * 4 = 8;"
        " use 8 or 16 (got 10)"
    ]


@pytest.mark.parametrize("model_type", ["llama", "unknown"])
def test_all_rules_together_read_the_model_once(monkeypatch, model_type):
    """A search of `mtj plan --fit` checks thousands of settings, and most rules about layouts ask for the model."""
    config = {**tiny_model.raw_config("llama"), "model_type": model_type}
    asked = []
    monkeypatch.setattr(families, "_read", lambda raw, known=families._read: asked.append(raw) or known(raw))
    args = TrainArgs(model="m", tensor_model_parallel_size=2)
    for _ in range(2):
        check(args, frozenset({"model", "tensor_model_parallel_size"}), task="sft", world_size=2, hf_config=config)
    assert len(asked) == 2


def test_a_model_that_is_read_once_is_the_one_that_is_read_each_time():
    config = tiny_model.raw_config("qwen3_moe")
    assert families.Shared(config).model == families.read(config)
    wrong = families.Shared({**config, "hidden_size": "wide"})
    for _ in range(2):
        with pytest.raises(ValueError, match="config.json:hidden_size"):
            families.read(wrong)
