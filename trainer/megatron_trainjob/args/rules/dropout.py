"""Noise settings in config.json: dropout is applied as in transformers, jitter is not."""

from __future__ import annotations

from megatron_trainjob import families
from megatron_trainjob.args.model.check import RESIDUAL_DROPOUT
from megatron_trainjob.args.rules.rule import Facts, rule

_ARGUMENTS = {"attention_dropout": "attention_dropout", **dict.fromkeys(RESIDUAL_DROPOUT, "hidden_dropout")}


def _stated(facts: Facts, *keys: str) -> dict[str, float]:
    """The keys that the model's family reads, with their values above 0."""
    family = families.of(facts.config)
    config = family.config(facts.config) if family else None
    found = {key: config.get(key) for key in keys} if config else {}
    return {key: value for key, value in found.items() if isinstance(value, int | float) and value > 0}


@rule("model", "attention_dropout", "hidden_dropout", needs_model=True, severity="warning")
def dropout_of_the_model_is_said(facts: Facts) -> str:
    """A published value is not one that the user chose."""
    stated = _stated(facts, *_ARGUMENTS)
    obeyed = {key: value for key, value in stated.items() if getattr(facts.args, _ARGUMENTS[key]) is None}
    if not obeyed:
        return ""
    values = " and ".join(f"{key} {value}" for key, value in obeyed.items())
    remedy = " and ".join(sorted({f"{_ARGUMENTS[key]}: 0" for key in obeyed}))
    return f"has {values} in config.json, which training applies, as transformers does; {remedy} trains without"


@rule("model", needs_model=True, severity="warning")
def jitter_of_the_router_is_not_applied(facts: Facts) -> str:
    """megatron-core has it for the router alone, transformers for the experts too."""
    stated = _stated(facts, "router_jitter_noise")
    if not stated:
        return ""
    return f"has router_jitter_noise {stated['router_jitter_noise']} in config.json; training here adds no such noise"


RULES = (dropout_of_the_model_is_said, jitter_of_the_router_is_not_applied)
