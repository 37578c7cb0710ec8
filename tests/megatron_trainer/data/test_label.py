"""Labels of rows that a head scores: what the column may hold, and the tokens that are scored."""

from __future__ import annotations

import pytest

from megatron_trainer.data.conversation.formats import Recognition
from megatron_trainer.data.conversation.label import Label
from megatron_trainer.data.encoding.encode import Encoded, Encoder, EncodeSettings
from megatron_trainer.data.row import Record
from megatron_trainer.data.values import Rejection, RowError
from tests.support.models import tiny_model

SINGLE = Label(problem="single_label_classification", count=3, names=("good", "bad", "ugly"))
SEVERAL = Label(problem="multi_label_classification", count=3, names=("good", "bad", "ugly"))
NUMBER = Label(problem="regression", count=1)
YES_OR_NO = Label(problem="single_label_classification", count=2)


@pytest.mark.parametrize(
    ("label", "value", "expected"),
    [
        (SINGLE, 2, (2,)),
        (SINGLE, 2.0, (2,)),
        (SINGLE, "1", (1,)),
        (SINGLE, [0], (0,)),
        (SINGLE, "ugly", (2,)),
        (SEVERAL, [0, 2], (1, 0, 1)),
        (SEVERAL, ["bad"], (0, 1, 0)),
        (SEVERAL, [1, 0, 1], (1, 0, 1)),
        (SEVERAL, [0.0, 1.0, 0.0], (0, 1, 0)),
        (SEVERAL, [], (0, 0, 0)),
        (SEVERAL, "[0, 2]", (1, 0, 1)),
        (NUMBER, 0.5, (0.5,)),
        (NUMBER, "0.5", (0.5,)),
        (NUMBER, " -1e3 ", (-1000,)),
        (YES_OR_NO, True, (1,)),
        (YES_OR_NO, "False", (0,)),
        (YES_OR_NO, "1.0", (1,)),
        (Label(problem="regression", count=2), [1, -1], (1, -1)),
    ],
)
def test_a_label_is_read_in_the_forms_that_it_comes_in(label, value, expected):
    assert label.read(value) == expected


@pytest.mark.parametrize(
    ("label", "value", "said"),
    [
        (SINGLE, 3, "class 3 of 3"),
        (SINGLE, -1, "class -1 of 3"),
        (SINGLE, 0.5, "is not a class"),
        (SINGLE, float("inf"), "is not a class"),
        (SEVERAL, [float("nan")], "is not a class"),
        (SINGLE, True, "is not a class"),
        (SINGLE, [0, 1], "is not a class"),
        (SINGLE, "Good", "'Good' is not a class; use a number from 0 to 2, or a name in id2label: good, bad, ugly"),
        (YES_OR_NO, "1_0", "'1_0' is not a class; use a number from 0 to 1, or name the classes in id2label"),
        (SEVERAL, "good,bad", "'good,bad' is not a class"),
        (NUMBER, "0,5", "'0,5' is not a number"),
        (SEVERAL, [0, 3], "class 3 of 3"),
        (Label(problem="multi_label_classification", count=2), [0, 1], "two meanings"),
        (NUMBER, [1, 2], "2 numbers for num_labels 1"),
        (NUMBER, float("nan"), "is not a number"),
        (NUMBER, {"a": 1}, "is not a number"),
    ],
)
def test_a_label_that_does_not_fit_is_refused(label, value, said):
    with pytest.raises(RowError, match=said):
        label.read(value)


def encode(row: dict[str, object], **settings: object) -> Encoded | Rejection:
    recognition = Recognition(label=SINGLE)
    encoder = Encoder(tiny_model.tokenizer(), EncodeSettings(recognition=recognition, **settings))
    [result] = encoder.encode([Record(0, "rows.jsonl", 1, row)])
    return result


def text(encoded: Encoded) -> str:
    return tiny_model.tokenizer().decode(encoded.input_ids[0])


def templated(turns: list[dict[str, str]], *, opens: bool) -> str:
    return tiny_model.tokenizer().apply_chat_template(turns, tokenize=False, add_generation_prompt=opens)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "Is it good?"}]},
        {"query": "Is it good?"},
        {"text": "Is it good?"},
        {"instruction": "Is it", "input": "good?"},
    ],
    ids=["messages", "query", "text", "alpaca"],
)
def test_a_question_is_scored_where_the_answer_would_begin(row):
    content = "Is it\ngood?" if "instruction" in row else "Is it good?"
    encoded = encode({**row, "label": "bad"})
    assert text(encoded) == templated([{"role": "user", "content": content}], opens=True)
    assert encoded.target == (1.0,)
    assert encoded.weights[0].tolist() == [0.0] * (len(encoded.input_ids[0]) - 1) + [1.0]


def test_an_answered_question_is_scored_whole():
    turns = [{"role": "user", "content": "Is it good?"}, {"role": "assistant", "content": "Yes."}]
    assert text(encode({"messages": turns, "label": 0})) == templated(turns, opens=False)
    assert text(encode({"query": "Is it good?", "response": "Yes.", "label": 0})) == templated(turns, opens=False)


def test_without_a_template_the_text_is_what_the_tokenizer_makes_of_it():
    encoded = encode({"text": "Is it good?", "label": 0}, use_chat_template=False)
    assert encoded.input_ids[0].tolist() == tiny_model.tokenizer()("Is it good?")["input_ids"]


def test_a_long_text_is_dropped_or_cut():
    row = {"text": "Is it good?", "label": 0}
    dropped = encode(row, use_chat_template=False, max_length=2)
    assert isinstance(dropped, Rejection)
    assert dropped.reason == "longer than max_length"
    cut = encode(row, use_chat_template=False, max_length=2, truncation_strategy="right")
    assert cut.input_ids[0].tolist() == tiny_model.tokenizer()("Is it good?")["input_ids"][:2]
    assert cut.weights[0].tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "a"}, "no label"),
        ({"text": "a", "label": 7}, "the label does not fit"),
        ({"text": " ", "label": 0}, "empty text"),
        ({"something": "a", "label": 0}, "no known columns"),
    ],
)
def test_a_row_that_cannot_be_scored_is_dropped_with_its_reason(row, reason):
    result = encode(row)
    assert isinstance(result, Rejection)
    assert result.reason == reason
