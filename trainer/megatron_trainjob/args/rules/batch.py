"""Batch arithmetic and the length of the run."""

from __future__ import annotations

from megatron_trainjob.args.rules.rule import Facts, rule


@rule("train_iters", "max_epochs")
def the_length_of_the_run_is_given(facts: Facts) -> str:
    """train_iters or max_epochs."""
    if facts.args.train_iters is not None or facts.args.max_epochs is not None:
        return ""
    return "the length of the run is missing; set train_iters or max_epochs"


RULES = (the_length_of_the_run_is_given,)
