"""Rules about two arguments, built from table rows: one needs the other, or they exclude each other."""

from __future__ import annotations

from dataclasses import replace

from megatron_trainjob.args.field import EVERY_TASK, Task
from megatron_trainjob.args.rules.condition import Condition
from megatron_trainjob.args.rules.rule import Facts, Rule
from megatron_trainjob.violation import Severity


def needs(
    name: str, when: Condition, then: Condition, *, because: str = "", tasks: tuple[Task, ...] = EVERY_TASK
) -> Rule:
    """The rule that `then` must hold whenever `when` does; the argument of `when` is reported."""
    message = f"needs {then.words()}{_reason(because)}; set that, or {_give_up(when)}"
    return _rule(name, when, then, message, tasks)


def excludes(
    name: str, when: Condition, other: Condition, *, because: str = "", tasks: tuple[Task, ...] = EVERY_TASK
) -> Rule:
    """The rule that `other` must not hold when `when` does; the argument of `when` is reported."""
    message = f"cannot be combined with {other.words()}{_reason(because)}; change one of the two"
    return _rule(name, when, replace(other, negated=not other.negated), message, tasks)


def idle_without(
    name: str, when: Condition, then: Condition, *, because: str = "", tasks: tuple[Task, ...] = EVERY_TASK
) -> Rule:
    """The warning that the argument of `when` has no effect unless `then` holds."""
    message = f"has no effect without {then.words()}{_reason(because)}"
    return _rule(name, when, then, message, tasks, severity="warning")


def idle_with(
    name: str, when: Condition, other: Condition, *, because: str = "", tasks: tuple[Task, ...] = EVERY_TASK
) -> Rule:
    """The warning that the argument of `when` has no effect if `other` holds."""
    message = f"has no effect with {other.words()}{_reason(because)}"
    return _rule(name, when, replace(other, negated=not other.negated), message, tasks, severity="warning")


def _rule(
    name: str,
    when: Condition,
    then: Condition,
    message: str,
    tasks: tuple[Task, ...],
    *,
    severity: Severity = "error",
) -> Rule:
    def broken(facts: Facts) -> str:
        if not when.holds(facts.args, facts.task) or then.holds(facts.args, facts.task):
            return ""
        return message

    cel = f"!{when.cel()} || {then.cel()}".replace("!!", "")
    return Rule(
        name=name,
        about=(when.name, then.name),
        broken=broken,
        tasks=tasks,
        cel=cel,
        cel_message=message,
        severity=severity,
    )


def _give_up(condition: Condition) -> str:
    verb = "remove" if condition.test in ("changed", "set") else "change"
    return f"{verb} {condition.name}"


def _reason(because: str) -> str:
    return f", because {because}" if because else ""
