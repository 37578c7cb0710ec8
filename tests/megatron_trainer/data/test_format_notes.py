"""What is said of a row that is used: what of it nothing reads, and what another of its fields displaces."""

import pytest

from megatron_trainer.data.conversation.formats import Recognition, recognize
from megatron_trainer.data.conversation.label import Label
from tests.support.data.plain_conversation import PLAIN


def test_what_nothing_reads_is_named():
    row = {
        "messages": [
            {"role": "user", "content": "?", "loss": 1},
            {"role": "assistant", "content": "!", "mood": "glad"},
        ],
        "passage": "Long ago",
        "id": 3,
        "note": "",
        "source": "web",
        "Image_Path": "a.png",
    }
    assert recognize(row, PLAIN).notes == (
        "nothing reads the column passage, which looks like part of the task; name it with columns",
        "nothing reads the column source",
        "nothing reads the column Image_Path, which looks like images; columns: {Image_Path: images} has it read",
        "nothing reads the message key loss of a turn that is not the assistant's",
        "nothing reads the message key mood",
    )
    assert recognize(_two_plus_two(), PLAIN).notes == ()


def _two_plus_two():
    return {"query": "2+2?", "response": "4", "tools": None, "system": "Count.", "history": []}


TOLD = {
    "content under two names": (
        {"messages": [{"role": "user", "content": "2+2?", "value": "9"}, {"role": "assistant", "content": "4"}]},
        "nothing reads the message key value",
    ),
    "two roles": (
        {"messages": [{"role": "user", "from": "gpt", "content": "2+2?"}, {"role": "assistant", "content": "4"}]},
        "nothing reads the message key from",
    ),
    "two questions in a pair": (
        {"messages": [{"human": "2+2?", "user": "9", "assistant": "4"}]},
        "nothing reads the message key user",
    ),
    "a thought of a question": (
        {"messages": [{"role": "user", "content": "2+2?", "reasoning": "x"}, {"role": "assistant", "content": "4"}]},
        "nothing reads the message key reasoning of a turn that is not the assistant's",
    ),
    "calls of a question": (
        {"messages": [{"role": "user", "content": "2+2?", "tool_calls": [1]}, {"role": "assistant", "content": "4"}]},
        "nothing reads the message key tool_calls of a turn that is not the assistant's",
    ),
    "keys of turns in columns": (
        {"prompt": [{"role": "user", "content": "2+2?", "mood": "glad"}], "completion": "4"},
        "nothing reads the message key mood",
    ),
    "a system prompt in two places": (
        {"system": "Count.", "messages": [{"role": "system", "content": "Add."}, *({"human": "2+2?", "gpt": "4"},)]},
        "the system prompt among the messages is used, not the one in the column",
    ),
    "one of several answers": ({"query": "2+2?", "answers": ["4", "4"], "x": ""}, None),
    "a thought in two places": (
        {"query": "2+2?", "reasoning": "a", "response": [{"role": "assistant", "content": "4", "reasoning": "b"}]},
        "the thought inside the answer is used, not the one in the column",
    ),
    "an empty answer": (
        {"messages": [{"human": "2", "gpt": ""}, {"human": "2+2?", "gpt": "4"}]},
        "an answer before the last one is empty, and trained so (loss: false leaves it out)",
    ),
    "context beside turns": (
        {"prompt": [{"role": "user", "content": "2+2?"}], "context": "Ada", "completion": "4"},
        "nothing reads the column context",
    ),
}


@pytest.mark.parametrize(("row", "note"), TOLD.values(), ids=TOLD.keys())
def test_what_another_field_displaces_is_reported(row, note):
    conversation = recognize(row, PLAIN)
    assert conversation.messages[-1].content == "4"
    assert conversation.notes == (() if note is None else (note,))


def test_a_choice_of_one_answer_among_several_is_reported():
    assert recognize({"query": "2+2?", "answers": ["4", "four"]}, PLAIN).notes == ("one of several answers is trained",)


def test_a_displaced_system_prompt_of_a_scored_row_is_reported():
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "2+2?"}]
    row = {"messages": messages, "system": "another", "label": 1}
    settings = Recognition(label=Label(problem="single_label_classification", count=2))
    assert "the system prompt among the messages is used" in recognize(row, settings).notes[0]
