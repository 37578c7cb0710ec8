"""Constraints on a job's arguments beyond their types, in CEL, for an admission policy of the API server.

The rules are not in the custom resource definition because the server would evaluate them at every write of a job,
including status, at about 0.1 ms of CPU per access to a field of spec.args (docs/decisions/0005).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from megatron_trainjob.args import fulfilled
from megatron_trainjob.args.field import TRAINING, Argument, Scalar
from megatron_trainjob.args.rules import RULES
from megatron_trainjob.args.rules.condition import Condition, cel_value, changed, contains, is_
from megatron_trainjob.args.rules.rule import Facts, Rule
from megatron_trainjob.args.tree import ARGUMENTS, TrainArgs
from megatron_trainjob.args.value import shown
from megatron_trainjob.violation import Severity

NOTHING_GIVEN = Facts(args=TrainArgs(), given=frozenset(), task="sft", world_size=None, hf_config=None)
SPEC, ARGS = "variables.spec", "variables.args"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One constraint: `holds` is CEL over the variables `spec` and `args` (a map, empty when there is none).

    is_idle: whether it is true whenever none of its `arguments` is set.
    """

    holds: str
    message: str
    is_idle: bool = True

    @property
    def arguments(self) -> tuple[str, ...]:
        """Names of the arguments that it reads, in its order."""
        return tuple(dict.fromkeys(re.findall(rf"{re.escape(ARGS)}\.(\w+)", self.holds)))


def checks() -> tuple[Check, ...]:
    """Every check on arguments, number of ranks and task."""
    return (*_refusals(), *_pairs("error"), _task(), _ranks())


def remarks() -> tuple[Check, ...]:
    """Warnings about accepted arguments that have no effect."""
    return (*_without_effect(), *_pairs("warning"), *_details_of_rlhf())


def _refusals() -> list[Check]:
    """One for every argument, and every value, that can never work; the default is accepted."""
    arguments = [
        _refusal(changed(name), f"is refused: {argument.reason}")
        for name, argument in ARGUMENTS.items()
        if argument.status == "refused" and set(TRAINING) <= set(argument.applies_to)
    ]
    choices = [
        _refusal(_has(argument, choice), f"cannot be {shown(choice)}: {reason}")
        for name, argument in ARGUMENTS.items()
        for choice, reason in argument.refused_choices.items()
    ]
    return [*arguments, *choices]


def _has(argument: Argument, choice: Scalar) -> Condition:
    is_list = argument.type.startswith("list")
    return contains(argument.name, str(choice)) if is_list else is_(argument.name, choice)


def _refusal(condition: Condition, message: str) -> Check:
    holds = _unless_fulfilled(condition.name, f"!{condition.cel()}")
    return Check(holds=holds, message=f"spec.args.{condition.name} {message}")


def _unless_fulfilled(name: str, cel: str) -> str:
    """The condition over spec.args, which holds too where the argument asks for what is done anyway."""
    done = "".join(f"{each.cel} || " for each in fulfilled.REQUESTS if each.name == name and each.cel)
    return _over_args(f"{done}{cel}")


def _without_effect() -> list[Check]:
    """One for every argument without effect, and for every accepted value with a warning."""
    arguments = [
        _refusal(changed(name), f"has no effect: {argument.reason}")
        for name, argument in ARGUMENTS.items()
        if _is_always_idle(argument)
    ]
    choices = [
        _warned_choice(is_(name, choice), text)
        for name, argument in ARGUMENTS.items()
        for choice, text in argument.warned_choices.items()
    ]
    return [*arguments, *choices]


def _warned_choice(condition: Condition, text: str) -> Check:
    """Said of a value only where the argument has an effect at all."""
    idle = [f"!({rule.cel})" for rule in _pair_rules("warning") if rule.about[0] == condition.name]
    holds = _over_args(" || ".join([f"!{condition.cel()}", *idle]))
    return Check(holds=holds, message=f"spec.args.{condition.name} {text}")


def _pairs(severity: Severity) -> list[Check]:
    return [
        Check(
            holds=_unless_fulfilled(rule.about[0], rule.cel),
            message=f"spec.args.{rule.about[0]} {rule.cel_message}",
            is_idle=not rule.broken(NOTHING_GIVEN),
        )
        for rule in _pair_rules(severity)
        if severity == "error" or not _is_always_idle(ARGUMENTS[rule.about[0]])
    ]


def _pair_rules(severity: Severity) -> list[Rule]:
    return [
        rule for rule in RULES.values() if rule.cel and rule.severity == severity and set(TRAINING) <= set(rule.tasks)
    ]


def _is_always_idle(argument: Argument) -> bool:
    """Whether every change of it is reported to have no effect, so that a rule need not."""
    return argument.status == "no effect" and not argument.fulfilled and set(TRAINING) <= set(argument.applies_to)


def _task() -> Check:
    """Arguments that make a task preference training are set only for task rlhf."""
    names = [argument.name for argument in ARGUMENTS.values() if _is_of_rlhf(argument) and argument.essential]
    given = " || ".join(f"has({ARGS}.{name})" for name in names)
    message = f"{', '.join(names)} belong to task rlhf; remove them or change the task"
    return Check(holds=f"{SPEC}.task == 'rlhf' || !({given})", message=f"spec.args: {message}", is_idle=False)


def _details_of_rlhf() -> list[Check]:
    """One for every detail of preference training, which nothing else reads."""
    return [
        Check(
            holds=_over_args(f"{SPEC}.task == 'rlhf' || !{changed(name).cel()}"),
            message=f"spec.args.{name} has no effect: it applies to rlhf only",
        )
        for name, argument in ARGUMENTS.items()
        if _is_of_rlhf(argument) and not argument.essential
    ]


def _is_of_rlhf(argument: Argument) -> bool:
    """Of the tasks of jobs, which exports are not."""
    return set(argument.applies_to) & set(TRAINING) == {"rlhf"}


def _ranks() -> Check:
    """The layout fits the number of ranks, if nprocPerNode is a number."""
    sizes = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
    product = " * ".join(_over_args(cel_value(name)) for name in sizes)
    ranks = f"(has({SPEC}.numNodes) ? {SPEC}.numNodes : 1) * int({SPEC}.nprocPerNode)"
    is_known = f"has({SPEC}.nprocPerNode) && type({SPEC}.nprocPerNode) == int"
    return Check(
        holds=f"!({is_known}) || ({ranks}) % ({product}) == 0",
        message="spec: numNodes * nprocPerNode must be a multiple of tensor_model_parallel_size *"
        " pipeline_model_parallel_size * context_parallel_size",
        is_idle=False,
    )


def _over_args(cel: str) -> str:
    """The expression, which refers to spec.args as `self`, rewritten to our variable."""
    return cel.replace("self.", f"{ARGS}.")
