"""Fields of Megatron-Core without an argument."""

from __future__ import annotations

from megatron_trainjob.args.names import ALIASES
from megatron_trainjob.args.other_programs import NO_FIELDS
from megatron_trainjob.args.rules.rule import Facts, rule
from megatron_trainjob.args.tree import ARGUMENTS


@rule("extra_megatron_kwargs")
def extra_fields_have_no_argument(facts: Facts) -> str:
    """Keys of extra_megatron_kwargs are neither arguments nor settings of Megatron-LM that are no fields."""
    problems = [(key, _problem(key.replace("-", "_"))) for key in facts.args.extra_megatron_kwargs or {}]
    return "; ".join(f"{key} {problem}" for key, problem in problems if problem)


def _problem(key: str) -> str:
    alias = ALIASES.get(key)
    argument = ARGUMENTS.get(alias.canonical if alias else key)
    if argument is not None and argument.status == "works":
        return f"is an argument of its own; set {key} beside extra_megatron_kwargs"
    return NO_FIELDS.get(key, "")


RULES = (extra_fields_have_no_argument,)
