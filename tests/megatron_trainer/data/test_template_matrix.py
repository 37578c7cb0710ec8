"""Chat templates of real models times kinds of rows: nothing vanishes, and each trained answer ends with a stop."""

from __future__ import annotations

import pytest

from megatron_trainer.data.values import Rejection
from tests.support.data import template_matrix
from tests.support.data.template_matrix import (
    DOCS,
    MODELS,
    ROWS,
    encoded,
    reference_text,
    stop_words,
    trained_runs,
    written,
)

REASONS = (
    "the chat template leaves out a thought",
    "the chat template leaves out a tool",
    "the chat template leaves out a tool call",
    "the chat template leaves out a tool result",
    "the chat template leaves out words beside a tool call",
    "the chat template leaves out the system prompt",
    "the chat template refuses the conversation",
)


def parts(row):
    """Every word that a row says, written out by hand rather than by the code under test."""
    for turn in row.get("messages") or row["conversations"]:
        content = turn.get("content", turn.get("value")) or ""
        if turn.get("from") == "function_call":
            content = ""
        yield from (piece for piece in content.replace("<think>", "\n").replace("</think>", "\n").split("\n") if piece)
        if "reasoning_content" in turn:
            yield turn["reasoning_content"]
    if "tools" in row and "Warm" in str(row):
        yield from ("get_weather", "Paris", "sunny, 21 degrees")


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_every_part_is_in_the_text_or_the_row_is_dropped_with_a_reason(model):
    for kind, row in ROWS.items():
        result = encoded(model, kind)
        if isinstance(result, Rejection):
            assert result.reason in REASONS, (kind, result)
            continue
        text = model.tokenizer().decode(result.input_ids[0])
        assert [part for part in parts(row) if part not in text] == [], kind


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_every_trained_answer_ends_with_a_stop_token(model):
    assert stop_words(model)
    for kind in ROWS:
        result = encoded(model, kind)
        if isinstance(result, Rejection):
            continue
        for run in trained_runs(model, result):
            assert run.endswith(stop_words(model)), kind


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_the_text_is_that_of_the_template_unless_something_would_be_missing(model):
    for kind in ("one round", "two questions", "tool call"):
        result, reference = encoded(model, kind), reference_text(model, kind)
        if not isinstance(result, Rejection) and reference is not None:
            text = model.tokenizer().decode(result.input_ids[0])
            added = [reference + stop for stop in stop_words(model)]  # GLM prints nothing after the last answer
            assert text in ([reference] if reference.rstrip().endswith(stop_words(model)) else [reference, *added]), (
                kind
            )


def test_the_table_in_the_docs_is_up_to_date():
    text = DOCS.read_text(encoding="utf-8")
    assert template_matrix.START in text
    assert written(text) == text, "run python -m tests.support.data.template_matrix --write"
