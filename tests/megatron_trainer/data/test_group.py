"""Rows of several texts: which columns are read, which rows are dropped and why, and what sequences they become."""

from __future__ import annotations

import json

import pytest

from megatron_trainer.data.collate import RowShape, collate, split
from megatron_trainer.data.conversation.formats import Recognition, recognize, with_system
from megatron_trainer.data.conversation.group import INSTRUCTION, Grouping
from megatron_trainer.data.encoding.encode import Encoded, Encoder, EncodeSettings, to_item
from megatron_trainer.data.row import Record
from megatron_trainer.data.values import RowError
from tests.support.models import tiny_model

EMBEDDING = Grouping(kind="embedding")


def texts(row, grouping=EMBEDDING, **more):
    found = recognize(row, Recognition(grouping=grouping), **more)
    return [[(turn.role, turn.content) for turn in turns] for turns in (found.messages, *found.others)], found.target


@pytest.mark.parametrize(
    "row",
    [
        {
            "messages": [{"role": "user", "content": "a"}],
            "positive_messages": [[{"role": "user", "content": "b"}]],
            "negative_messages": [[{"role": "user", "content": "c"}], [{"role": "user", "content": "d"}]],
        },
        {"anchor": "a", "positive": "b", "negative": ["c", "d"]},
        {"query": "a", "response": "b", "rejected_response": ["c", "d"]},
        {"Anchor": "a", "Positives": ["b"], "negatives": ["c", "d"]},
        {"query": "a", "pos": ["b"], "neg": ["c", "d"]},
        {"anchor": "a", "positive": "b", "negative_2": "d", "negative_1": "c"},
        {"anchor": "a", "positive": "b", "negative": "c", "negative_10": ["d"]},
        {"anchor": "a", "positive": "b", "Neg1": "c", "neg2": "d", "neg3": ""},
    ],
)
def test_an_anchor_has_a_positive_and_negatives(row):
    assert texts(row) == ([[("user", each)] for each in "abcd"], ())


@pytest.mark.parametrize(
    ("row", "grouping", "reason"),
    [
        ({"anchor": "a"}, EMBEDDING, "no positive"),
        ({"positive": "a"}, EMBEDDING, "no anchor"),
        ({"anchor": "a", "positive": ["b", "c"]}, EMBEDDING, "several positives"),
        ({"anchor": "a", "positive": " "}, EMBEDDING, "empty text"),
        ({"anchor": "a", "positive": "b", "images": ["x"]}, EMBEDDING, "only text can be trained on"),
        ({"anchor": "a", "positive": "b", "positive_images": [["x"]]}, EMBEDDING, "only text can be trained on"),
        ({"anchor": "a", "positive": "b"}, Grouping(kind="embedding", hard_negatives=1), "no negative"),
        ({"anchor": "a", "positive": "b"}, Grouping(kind="embedding", needs_label=True), "no label"),
        (
            {"anchor": "a", "positive": "b", "label": 0.5},
            Grouping(kind="embedding", needs_label=True, is_binary=True),
            "the label does not fit",
        ),
        ({"query": "a"}, Grouping(kind="reranker"), "no document"),
        ({"query": "a", "document": "b", "label": 2}, Grouping(kind="reranker"), "the label does not fit"),
        ({"query": "a", "document": "b", "label": 1}, Grouping(kind="reranker", min_documents=2), "too few documents"),
    ],
)
def test_other_rows_are_dropped_with_a_reason(row, grouping, reason):
    with pytest.raises(RowError, match=reason):
        texts(row, grouping)


def test_a_label_says_how_alike_two_texts_are():
    row = {"sentence1": "a", "sentence2": "b", "label": 0.8}
    assert texts(row, Grouping(kind="embedding", needs_label=True))[1] == (0.8,)


def test_documents_are_answers_positives_first():
    row = {"query": "q", "negative": ["c", "d"], "positive": "b"}
    found, target = texts(row, Grouping(kind="reranker"))
    assert found == [[("user", "q"), ("assistant", each)] for each in "bcd"]
    assert target == (1.0,)
    for label in (0, False, "0", "False", "0.0"):
        assert texts({"query": "q", "document": "b", "label": label}, Grouping(kind="reranker"))[1] == (0.0,)
    found, target = texts({"query": "q", "pos": ["b"], "neg_1": "c"}, Grouping(kind="reranker"))
    assert found == [[("user", "q"), ("assistant", each)] for each in "bc"]
    assert target == (1.0,)


def test_documents_are_drawn_the_same_in_each_run():
    row = {"query": "q", "positive": list("abc"), "negative": list("defghi")}
    grouping = Grouping(kind="reranker", max_positives=2, max_negatives=3)
    drawn = [texts(row, grouping, number=number) for number in range(8)]
    assert drawn == [texts(row, grouping, number=number) for number in range(8)]
    assert {len(found) for found, _ in drawn} == {5}
    assert len({str(found) for found, _ in drawn}) > 1


def test_a_generative_reranker_is_asked_in_the_published_words():
    row = {"query": "q", "positive": "d"}
    (system, question), *_ = texts(row, Grouping(kind="generative_reranker", answers=("ja", "nein")))[0]
    assert system[0] == "system"
    assert '"ja" or "nein"' in system[1]
    assert question == ("user", f"<Instruct>: {INSTRUCTION}\n<Query>: q\n<Document>: d")
    own = {"messages": [{"role": "system", "content": "Find cows."}, {"role": "user", "content": "q"}], "positive": "d"}
    assert texts(own, Grouping(kind="generative_reranker"))[0][0][1][1].startswith("<Instruct>: Find cows.\n")


def test_a_system_prompt_comes_before_every_text():
    found = recognize({"anchor": "a", "positive": "b"}, Recognition(grouping=EMBEDDING))
    prompted = with_system(found, "s")
    assert [turns[0].content for turns in (prompted.messages, *prompted.others)] == ["s", "s"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model.make("llama", tmp_path_factory.mktemp("group")))


@pytest.mark.parametrize("use_chat_template", [True, False])
def test_a_group_is_stored_as_one_sequence_and_split_again(tokenizer, use_chat_template):
    settings = EncodeSettings(recognition=Recognition(grouping=EMBEDDING), use_chat_template=use_chat_template)
    row = {"anchor": "count to three", "positive": "water", "negative": ["is the mill open?", "water"]}
    (encoded,) = Encoder(tokenizer, settings).encode([Record(0, "f", 1, row)])
    assert isinstance(encoded, Encoded)
    members = split(to_item(encoded))
    names = [row["anchor"], row["positive"], *row["negative"]]
    for member, text in zip(members, names, strict=True):
        shown = tokenizer.decode(member.input_ids)
        assert text in shown
        assert [place for place, label in enumerate(member.labels) if label >= 0] == [member.length - 1]
    if not use_chat_template:
        assert [member.input_ids.tolist() for member in members] == [tokenizer(text)["input_ids"] for text in names]
    batch = collate([to_item(encoded)] * 2, RowShape(pad_id=0, splits_groups=True))
    assert batch.groups == (4, 4)
    assert batch.num_samples == 8


USER, SYSTEM = {"role": "user", "content": "a"}, {"role": "system", "content": "s"}


@pytest.mark.parametrize("written", [json.dumps, repr], ids=["JSON", "pandas"])
@pytest.mark.parametrize("anchor", ["messages", "query", "anchor"])
def test_lists_that_a_table_holds_as_text_are_read_as_lists(written, anchor):
    document = {"role": "user", "content": "b"}
    one = {anchor: written([USER]), "positive_messages": written([document]), "negative": written(["c", "d"])}
    each = {anchor: written([USER]), "positive": written([[document]]), "negatives": written(["c", "d"])}
    inside = {anchor: written([USER]), "positive": [written([document])], "negatives": ["c", "d"]}
    for row in (one, each, inside):
        assert texts(row) == ([[("user", name)] for name in "abcd"], ())
    assert texts({"anchor": "a", "positive": "b", "negative": "[]"})[0] == [[("user", "a")], [("user", "b")]]


@pytest.mark.parametrize("text", ["[1] A note.", "[[1, 2], [3, 4]]", '[{"a": 1}]', "[[a link]] here", '["x" said he]'])
def test_other_texts_in_brackets_stay_texts(text):
    assert texts({"anchor": text, "positive": text})[0] == [[("user", text)]] * 2


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": '[{"role": "user", "con'}, "a field is not JSON"),
        ({"query": '[{"role": "user", "con'}, "a field is not JSON"),
        ({"query": "a", "positive": '[[{"role": "user", "con'}, "a field is not JSON"),
        ({"query": "a", "positive": "b", "negative": "['c' 'd']"}, "a list of texts without commas"),
        ({"query": "a", "positive": "b", "negative": '["c", null]'}, "empty text"),
    ],
)
def test_damaged_lists_are_refused(row, reason):
    with pytest.raises(RowError, match=reason):
        texts({"positive": "b", **row})


@pytest.mark.parametrize("kind", ["embedding", "reranker", "generative_reranker"])
def test_a_displaced_system_prompt_is_reported(kind):
    settings = Recognition(grouping=Grouping(kind=kind))
    row = {"messages": [SYSTEM, USER], "positive": "b"}
    note = "the system prompt among the messages is used, not the one in the column"
    assert note in recognize({**row, "system": "another"}, settings).notes
    assert not recognize({**row, "system": "s"}, settings).notes
    if kind != "embedding":
        document = [{"role": "system", "content": "another"}, {"role": "assistant", "content": "b"}]
        [note] = recognize({**row, "positive": document}, settings).notes
        assert note == "the system prompt of a document is used, not that of the question"
