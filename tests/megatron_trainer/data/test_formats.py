"""Every way to write a row becomes the same conversation, and what cannot be used says why."""

import json
import math

import pytest

from megatron_trainer.data.conversation.formats import Recognition, recognize, with_system
from megatron_trainer.data.conversation.label import Label
from megatron_trainer.data.values import RowError
from tests.support.data.plain_conversation import ASKED, PLAIN, chat, turns

NAN = math.nan
SAME_CONVERSATION = {
    "messages": {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
    "mixed keys": {"conversation": [{"role": "user", "value": "2+2?"}, {"from": "bot", "content": "4"}]},
    "pairs": {"messages": [{"human": "2+2?", "assistant": "4"}]},
    "pairs of XTuner": {"conversation": [{"input": "2+2?", "output": "4"}]},
    "pairs of questions": {"conversation": [{"question": "2+2?", "answer": "4"}]},
    "roles of OpenAssistant": {"messages": [{"role": "prompter", "content": "2+2?"}, {"role": "AI", "content": "4"}]},
    "roles of Cohere": {"messages": [{"role": "USER", "content": "2+2?"}, {"role": "CHATBOT", "content": "4"}]},
    "json text": {"messages": json.dumps([{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}])},
    "columns of a struct": {"messages": {"role": ["user", "assistant"], "content": ["2+2?", "4"]}},
    "parts of text": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]},
            {"role": "assistant", "content": "4"},
        ]
    },
    "alpaca": {"instruction": "2+2?", "input": "", "output": "4"},
    "instruction alone": {"instruction": "2+2?", "output": "4"},
    "query and response": {"query": "2+2?", "response": "4"},
    "question and answer": {"question": "2+2?", "answer": 4},
    "prompt and completion": {"prompt": "2+2?", "completion": "4", "unknown": 1},
    "one of one responses": {"prompt": "2+2?", "answers": ["4"]},
    "own name wins": {"query": "2+2?", "prompt": "other", "response": "4", "text": "other"},
    "names in another case": {"Question": "2+2?", "ANSWER": "4"},
    "prompt and completion in another case": {"Prompt": "2+2?", "completion": "4"},
    "alpaca in another case": {"Instruction": "2+2?", "Input": "", "Output": "4"},
    "messages in another case": {
        "Messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    },
    "source and target": {"source": "2+2?", "target": "4"},
    "source beside a question": {"question": "2+2?", "answer": "4", "source": "the web"},
    "tatsu": {"instruction": "2+2?", "input": "", "output": "4", "text": "Below is an instruction: 2+2? 4"},
    "turns in columns": {
        "prompt": [{"role": "user", "content": "2+2?"}],
        "completion": [{"role": "assistant", "content": "4"}],
    },
    "turns and a text": {"prompt": [{"role": "user", "content": "2+2?"}], "completion": "4"},
    "a list of one question": {"question": ["2+2?"], "answer": "4"},
    "missing values of pandas": {
        "instruction": "2+2?",
        "input": NAN,
        "output": "4",
        "system": NAN,
        "history": NAN,
        "tools": NAN,
        "reasoning": NAN,
        "score": NAN,
    },
    "missing values of pandas in turns": {
        "messages": [
            {"role": "user", "content": "2+2?", "from": NAN, "value": NAN, "name": NAN},
            {"role": "assistant", "content": "4", "tool_calls": NAN, "reasoning_content": NAN, "weight": NAN},
        ]
    },
    "nulls beside the names of another dialect": {
        "messages": [
            {"role": None, "content": None, "from": "human", "value": "2+2?"},
            {"role": None, "content": None, "from": "gpt", "value": "4"},
        ]
    },
    "as pandas writes a list": {"messages": "[{'role': 'user', 'content': '2+2?'}, {'from': 'gpt', 'value': '4'}]"},
    "messages after the last answer": {
        "messages": [
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "content": "4"},
            {"role": "user", "content": "Thanks"},
        ]
    },
    "absent values": {"query": "2+2?", "prompt": None, "response": "4", "system": None, "tools": None},
}


@pytest.mark.parametrize("row", SAME_CONVERSATION.values(), ids=SAME_CONVERSATION.keys())
def test_each_format_gives_the_same_conversation(row):
    assert turns(recognize(row, PLAIN).messages) == ASKED


def test_alpaca_joins_instruction_and_input_with_a_line_end():
    row = {"instruction": "Add", "input": "2 and 2", "output": "4"}
    assert turns(recognize(row, PLAIN).messages) == [("user", "Add\n2 and 2"), ("assistant", "4")]


@pytest.mark.parametrize("name", ["input", "context", "Context"])
@pytest.mark.parametrize("question", ["instruction", "question", "prompt"])
def test_context_beside_a_question_is_its_second_half(question, name):
    row = {question: "Who is it?", name: "It is Ada.", "response": "Ada."}
    assert turns(recognize(row, PLAIN).messages)[0] == ("user", "Who is it?\nIt is Ada.")


def test_a_row_without_a_question_is_dropped_where_one_is_needed():
    asks = Recognition(needs_question=True)
    for row in ({"text": "Once"}, {"system": "Be brief.", "quest": "?", "answer": "!"}, {"query": " ", "answer": "!"}):
        with pytest.raises(RowError, match="the row has no question"):
            recognize(row, asks)
    assert turns(recognize({"text": "Once"}, PLAIN).messages) == [("assistant", "Once")]


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking", "thought"])
def test_a_thought_in_a_column_belongs_to_the_answer(key):
    [_, answer] = recognize({"input": "2+2?", key: "Count.", "content": "4"}, PLAIN).messages
    assert (answer.content, answer.thought) == ("4", "Count.")


def test_history_comes_before_the_query():
    row = {"query": "and 3+3?", "response": "6", "history": [["2+2?", "4"]], "system": "Count."}
    assert turns(recognize(row, PLAIN).messages) == [
        ("system", "Count."),
        *ASKED,
        ("user", "and 3+3?"),
        ("assistant", "6"),
    ]


def test_text_is_a_single_assistant_turn():
    assert turns(recognize({"text": "Once upon"}, PLAIN).messages) == [("assistant", "Once upon")]


@pytest.mark.parametrize("name", ["text", "content"])
def test_where_a_text_is_from_is_no_question(name):
    """Corpora say it in a column `source`."""
    found = recognize({name: "hello", "source": "wiki"}, PLAIN)
    assert turns(found.messages) == [("assistant", "hello")]
    assert found.notes == ("nothing reads the column source",)
    with pytest.raises(RowError, match="the row has no question"):
        recognize({name: "hello", "source": "wiki"}, Recognition(needs_question=True))
    labeled = Recognition(label=Label(problem="regression", count=1))
    assert turns(recognize({name: "hello", "source": "wiki", "label": 1}, labeled).messages) == [("user", "hello")]


def test_columns_are_renamed_first():
    settings = Recognition(columns={"text1": "query", "text2": "response"})
    assert turns(recognize({"text1": "2+2?", "text2": "4"}, settings).messages) == ASKED


def test_columns_are_renamed_in_any_case_and_never_two_to_one():
    settings = Recognition(columns={"q": "Query"})
    assert turns(recognize({"Q": "2+2?", "response": "4"}, settings).messages) == ASKED
    with pytest.raises(RowError, match="two columns mean query"):
        recognize({"Q": "2+2?", "query": "3+3?", "response": "4"}, settings)


def test_system_of_the_row_wins_over_the_argument():
    own = recognize({"query": "2+2?", "response": "4", "system_prompt": "Own."}, PLAIN)
    assert turns(with_system(own, "Given.").messages)[0] == ("system", "Own.")
    none = recognize({"query": "2+2?", "response": "4"}, PLAIN)
    assert turns(with_system(none, "Given.").messages)[0] == ("system", "Given.")
    inside = recognize({"system": "Column.", "messages": [{"role": "system", "content": "Turn."}, *chat()]}, PLAIN)
    assert turns(inside.messages)[0] == ("system", "Turn.")


def test_one_of_several_responses_is_picked_by_seed_and_row_alone():
    row = {"query": "2+2?", "response": ["4", "four", "IV"]}
    picked = [turns(recognize(row, PLAIN, number=number).messages)[1][1] for number in range(50)]
    assert picked == [turns(recognize(row, PLAIN, number=number).messages)[1][1] for number in range(50)]
    assert set(picked) == {"4", "four", "IV"}


def test_channel_and_loss_are_kept():
    row = {
        "channel": "math",
        "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!", "loss": False}],
    }
    conversation = recognize(row, PLAIN)
    assert conversation.channel == "math"
    assert [message.loss for message in conversation.messages] == [None, False]


BAD = {
    "unknown columns": ({"a": 1}, "no known columns: the row has a; name its column with columns: {x: response}"),
    "no columns": ({}, "no known columns"),
    "no messages": ({"messages": []}, "no messages"),
    "messages is a number": ({"messages": 3}, "messages is not a list"),
    "messages is bad json": ({"messages": "[{"}, "a field is not JSON"),
    "a message is text": ({"messages": ["hi"]}, "a message is not an object"),
    "a message without role": ({"messages": [{"text": "hi"}]}, "a message has no role"),
    "unknown role": ({"messages": [{"role": "king", "content": "hi"}]}, "unknown role"),
    "role is a number": ({"messages": [{"role": 3, "content": "hi"}]}, "unknown role"),
    "the user has the last word": ({"messages": chat()[:1]}, "the last turn is not the assistant's"),
    "empty response": ({"query": "?", "response": " \n"}, "empty response"),
    "response is an object": ({"query": "?", "response": {"a": 1}}, "a field is not text"),
    "query is true": ({"query": True, "response": "!"}, "a field is not text"),
    "two queries": ({"prompt": "?", "question": "?", "response": "!"}, "several columns could be the query"),
    "history is flat": ({"query": "?", "response": "!", "history": ["a", "b"]}, "history is not a list of"),
    "a round without an answer": (
        {"query": "?", "response": "!", "history": [["a", None]]},
        "history has an empty round",
    ),
    "an image": ({"messages": chat(), "images": ["a.png"]}, "only text can be trained on"),
    "an image part": (
        {"messages": [{"role": "user", "content": [{"type": "image", "image": "x"}]}, chat()[1]]},
        "only text can be trained on",
    ),
    "tools is text": ({"query": "?", "response": "!", "tools": "look"}, "a field is not JSON"),
    "a tool is a number": ({"query": "?", "response": "!", "tools": [3]}, "a tool is not an object"),
    "loss is text": (
        {"messages": [chat()[0], {"role": "assistant", "content": "4", "loss": "yes"}]},
        "loss of a message is neither true nor false",
    ),
    "an endless weight": (
        {"messages": [chat()[0], {"role": "assistant", "content": "4", "weight": math.inf}]},
        "weight of a message is neither true nor false nor a weight",
    ),
    "a number without end": ({"query": "2+2?", "response": math.inf}, "a field is not text"),
    "a missing answer": ({"query": "2+2?", "response": NAN}, "no known columns"),
    "a missing question": ({"messages": [{"role": "user", "content": NAN}, chat()[1]]}, "a message has no content"),
    "several questions": ({"question": ["a?", "b?"], "answer": "!"}, "a column holds a list"),
    "a null question": ({"messages": [{"role": "user", "content": None}, chat()[1]]}, "a message has no content"),
    "a null answer": (
        {"messages": [chat()[0], {"role": "assistant", "content": None}, *chat()]},
        "an assistant turn is empty",
    ),
    "two masks": (
        {"messages": [chat()[0], {"role": "assistant", "content": "4", "loss": 1, "weight": 0}]},
        "a message has two loss masks that differ",
    ),
    "a nameless call": ({"messages": [chat()[0], {"role": "tool_call", "content": "{}"}]}, "a tool call has no name"),
}


@pytest.mark.parametrize(("row", "reason"), BAD.values(), ids=BAD.keys())
def test_a_bad_row_has_a_reason(row, reason):
    with pytest.raises(RowError) as caught:
        recognize(row, PLAIN)
    assert f"{caught.value.reason}: {caught.value.detail}".startswith(reason)


def test_several_texts_in_one_place_are_not_glued():
    for row in (
        {"messages": [{"role": "user", "content": ["a", "b"]}, {"role": "assistant", "content": "c"}]},
        {"query": "a", "response": "c", "system": ["a", "b"]},
    ):
        with pytest.raises(RowError, match="a column holds a list"):
            recognize(row, PLAIN)


def test_weights_of_tables_are_numbers():
    row = [chat()[0], {**chat()[1], "weight": "0"}, chat()[0], {**chat()[1], "train": "true"}]
    assert [message.loss for message in recognize({"messages": row}, PLAIN).messages] == [None, False, None, True]


@pytest.mark.parametrize(
    "rounds", [[["1+1?", "2"]], [{"role": "user", "content": "1+1?"}, {"from": "gpt", "value": "2"}]]
)
def test_history_is_pairs_or_turns(rounds):
    messages = recognize({"query": "2+2?", "response": "4", "history": rounds}, PLAIN).messages
    assert turns(messages) == [("user", "1+1?"), ("assistant", "2"), *ASKED]


def test_turns_in_the_text_of_a_column_are_read_and_noted():
    row = {"prompt": json.dumps(chat()[:1]), "completion": json.dumps(chat()[1])}
    found = recognize(row, PLAIN)
    assert turns(found.messages) == ASKED
    assert sorted(found.notes) == [
        f"the text in {name} is the JSON of turns, and read as turns" for name in ("completion", "prompt")
    ]


@pytest.mark.parametrize(
    "answer",
    ['[{"from": "Paris", "to": "Rome"}]', '{"role": "manager", "content": 1}', '[{"role": "user"}]', "[1]", "{", "[{]"],
)
def test_answers_in_json_that_are_no_turns_stay_texts(answer):
    found = recognize({"query": "2+2?", "response": answer}, PLAIN)
    assert turns(found.messages) == [ASKED[0], ("assistant", answer)]
    assert found.notes == ()


def test_parts_of_text_in_a_column_are_one_text():
    parts = [{"type": "text", "text": "4"}]
    found = recognize({"prompt": "2+2?", "completion": parts}, PLAIN)
    assert turns(found.messages) == ASKED
    assert found.notes == ()


def test_an_answer_that_is_a_whole_conversation_in_json_is_trained_as_it_is_and_noted():
    answer = json.dumps(chat())
    found = recognize({"query": "2+2?", "response": answer}, PLAIN)
    assert found.messages[-1].content == answer
    assert found.notes == (
        "the text in response is the JSON of turns, and trained as text; columns: {response: messages}",
    )
