"""Runs all rules for which the required facts are known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from megatron_trainjob import families
from megatron_trainjob.args.field import Task
from megatron_trainjob.args.model import check as model_check
from megatron_trainjob.args.rules import (
    batch,
    data,
    dropout,
    experts,
    export,
    extra,
    head,
    image,
    kernel,
    layout,
    optimizer,
    precision,
    prediction,
    preference,
    recompute,
    reporting,
    retrieval,
    template,
    tuner,
    vision,
)
from megatron_trainjob.args.rules.rule import Facts, Rule
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.violation import Violation, errors

TOPICS = (
    data,
    batch,
    layout,
    dropout,
    experts,
    optimizer,
    precision,
    kernel,
    extra,
    recompute,
    prediction,
    tuner,
    vision,
    preference,
    head,
    retrieval,
    template,
    image,
    reporting,
    export,
)
RULES: dict[str, Rule] = {rule.name: rule for topic in TOPICS for rule in topic.RULES}


def check(
    args: TrainArgs,
    given: frozenset[str],
    *,
    task: Task,
    world_size: int | None = None,
    hf_config: Mapping[str, Any] | None = None,
    path: str = "spec.args",
    broken: frozenset[str] = frozenset(),
) -> tuple[Violation, ...]:
    """All violations, including warnings; rules of other tasks, unknown facts or `broken` arguments are skipped.

    `world_size` counts ranks; `hf_config` is the model's config.json; `broken` names arguments that were already
    reported.
    """
    config = None if hf_config is None else families.Shared(families.flat(hf_config))
    facts = Facts(args=args, given=given, task=task, world_size=world_size, hf_config=config)
    found = tuple(
        Violation(path=f"{path}.{name}", value=getattr(args, name), message=message, severity=rule.severity)
        for rule in _applicable(task, knows_world_size=world_size is not None, knows_model=config is not None)
        if broken.isdisjoint(rule.about)
        if (message := rule.broken(facts))
        for name in (_reported(rule, given),)
    )
    return (*found, *_about_the_model(facts, path, {problem.path for problem in errors(found)}))


def _reported(rule: Rule, given: frozenset[str]) -> str:
    """The argument that a violation names: the first that the rule is about, for a warning of those that are given."""
    named = (name for name in rule.about if name in given or rule.severity == "error")
    return next(named, rule.about[0])


def _about_the_model(facts: Facts, path: str, blamed: set[str]) -> Iterator[Violation]:
    """Problems of the model itself under these arguments, except those that a rule has already reported."""
    if facts.hf_config is None:
        return
    for violation in model_check.check(facts.hf_config, facts.args).violations:
        where = violation.path.replace("spec.args", path, 1)
        if where not in blamed:
            yield replace(violation, path=where)


@cache
def _applicable(task: Task, *, knows_world_size: bool, knows_model: bool) -> tuple[Rule, ...]:
    """The rules of this task whose facts are known."""
    return tuple(
        rule
        for rule in RULES.values()
        if task in rule.tasks
        and (knows_world_size or not rule.needs_world_size)
        and (knows_model or not rule.needs_model)
    )
