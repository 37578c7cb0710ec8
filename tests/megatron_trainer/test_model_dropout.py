"""Dropout that config.json asks for: trained with and said, as in transformers, unless an argument says otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_trainjob.args import rules
from megatron_trainjob.args.tree import TrainArgs
from tests.support.models import tiny_model
from tests.support.ranks import model_probe
from tests.support.ranks.pool import gloo_ranks

KEYS = {"phi3": "resid_pdrop", "seed_oss": "residual_dropout"}


@pytest.mark.dist
@pytest.mark.parametrize(("name", "key"), KEYS.items())
def test_residual_dropout_of_the_model_is_applied_unless_an_argument_turns_it_off(
    name: str, key: str, model_root: Path
):
    folder = tiny_model.make(name, model_root, **{key: 0.3})
    variants: dict[str, dict[str, Any]] = {
        "as stored": {},
        "off": {"hidden_dropout": 0.0},
        "other": {"hidden_dropout": 0.1},
    }
    (built,) = gloo_ranks(1).run(model_probe.build_all, folder, variants)
    assert {name: each.config["hidden_dropout"] for name, each in built.items()} == {
        "as stored": 0.3,
        "off": 0.0,
        "other": 0.1,
    }
    first, second = built["as stored"].losses
    assert first != second
    first, second = built["off"].losses
    assert first == second


def said(**config: Any) -> str:
    found = rules.check(TrainArgs(model="m"), frozenset(), task="sft", hf_config=config)
    return "; ".join(each.message for each in found if each.severity == "warning")


def test_what_the_model_asks_for_is_said():
    text = said(model_type="seed_oss")
    assert "has attention_dropout 0.1 and residual_dropout 0.1 in config.json" in text
    assert "attention_dropout: 0 and hidden_dropout: 0 trains without" in text
    assert said(model_type="seed_oss", attention_dropout=0.0, residual_dropout=0.0) == ""
    assert said(model_type="llama", resid_pdrop=0.5, hidden_dropout=0.5) == ""


def test_jitter_of_a_router_is_said_not_to_be_applied():
    text = said(model_type="mixtral", router_jitter_noise=0.2)
    assert text == "has router_jitter_noise 0.2 in config.json; training here adds no such noise"
