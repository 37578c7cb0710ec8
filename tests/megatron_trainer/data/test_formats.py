"""Every way to write a row becomes the same conversation, and what cannot be used says why."""

import json
import math

import pytest

from megatron_trainer.data.conversation.formats import Recognition, recognize, with_system
from megatron_trainer.data.conversation.label import Label
from megatron_trainer.data.values import Message, RowError

PLAIN = Recognition()
PREFERENCE = Recognition(needs_rejected=True)


def turns(conversation):
    return [(message.role, message.content) for message in conversation.messages]


NAN = math.nan
ASKED = [("user", "2+2?"), ("assistant", "4")]
SAME_CONVERSATION = {
    "messages": {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
    "mixed keys": {"conversation": [{"role": "user", "value": "2+2?"}, {"from": "bot", "content": "4"}]},
    "pairs": {"messages": [{"human": "2+2?", "assistant": "4"}]},
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
    assert turns(recognize(row, PLAIN)) == ASKED


def test_alpaca_joins_instruction_and_input_with_a_line_end():
    row = {"instruction": "Add", "input": "2 and 2", "output": "4"}
    assert turns(recognize(row, PLAIN)) == [("user", "Add\n2 and 2"), ("assistant", "4")]


@pytest.mark.parametrize("name", ["input", "context", "Context"])
@pytest.mark.parametrize("question", ["instruction", "question", "prompt"])
def test_context_beside_a_question_is_its_second_half(question, name):
    row = {question: "Who is it?", name: "It is Ada.", "response": "Ada."}
    assert turns(recognize(row, PLAIN))[0] == ("user", "Who is it?\nIt is Ada.")


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
    }
    assert recognize(row, PLAIN).notes == (
        "nothing reads the column passage, which looks like part of the task; name it with columns",
        "nothing reads the column source",
        "nothing reads the message key loss of a turn that is not the assistant's",
        "nothing reads the message key mood",
    )
    assert recognize(_two_plus_two(), PLAIN).notes == ()


def _two_plus_two():
    return {"query": "2+2?", "response": "4", "tools": None, "system": "Count.", "history": []}


def test_a_row_without_a_question_is_dropped_where_one_is_needed():
    asks = Recognition(needs_question=True)
    for row in ({"text": "Once"}, {"system": "Be brief.", "quest": "?", "answer": "!"}, {"query": " ", "answer": "!"}):
        with pytest.raises(RowError, match="the row has no question"):
            recognize(row, asks)
    assert turns(recognize({"text": "Once"}, PLAIN)) == [("assistant", "Once")]


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking", "thought"])
def test_a_thought_in_a_column_belongs_to_the_answer(key):
    [_, answer] = recognize({"input": "2+2?", key: "Count.", "content": "4"}, PLAIN).messages
    assert (answer.content, answer.thought) == ("4", "Count.")


def test_functions_are_tools_and_data_of_a_tool_is_text():
    row = {"functions": [{"name": "look"}], "messages": [*_chat(), {"role": "tool", "content": {"a": 1}}, *_chat()]}
    conversation = recognize(row, PLAIN)
    assert conversation.tools == ({"type": "function", "function": {"name": "look"}},)
    assert conversation.messages[2].content == '{"a": 1}'


def test_history_comes_before_the_query():
    row = {"query": "and 3+3?", "response": "6", "history": [["2+2?", "4"]], "system": "Count."}
    assert turns(recognize(row, PLAIN)) == [("system", "Count."), *ASKED, ("user", "and 3+3?"), ("assistant", "6")]


def test_text_is_a_single_assistant_turn():
    assert turns(recognize({"text": "Once upon"}, PLAIN)) == [("assistant", "Once upon")]


def test_columns_are_renamed_first():
    settings = Recognition(columns={"text1": "query", "text2": "response"})
    assert turns(recognize({"text1": "2+2?", "text2": "4"}, settings)) == ASKED


def test_columns_are_renamed_in_any_case_and_never_two_to_one():
    settings = Recognition(columns={"q": "Query"})
    assert turns(recognize({"Q": "2+2?", "response": "4"}, settings)) == ASKED
    with pytest.raises(RowError, match="two columns mean query"):
        recognize({"Q": "2+2?", "query": "3+3?", "response": "4"}, settings)


def test_system_of_the_row_wins_over_the_argument():
    own = recognize({"query": "2+2?", "response": "4", "system_prompt": "Own."}, PLAIN)
    assert turns(with_system(own, "Given."))[0] == ("system", "Own.")
    none = recognize({"query": "2+2?", "response": "4"}, PLAIN)
    assert turns(with_system(none, "Given."))[0] == ("system", "Given.")
    inside = recognize({"system": "Column.", "messages": [{"role": "system", "content": "Turn."}, *_chat()]}, PLAIN)
    assert turns(inside)[0] == ("system", "Turn.")


def _chat():
    return [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]


def test_one_of_several_responses_is_picked_by_seed_and_row_alone():
    row = {"query": "2+2?", "response": ["4", "four", "IV"]}
    picked = [turns(recognize(row, PLAIN, number=number))[1][1] for number in range(50)]
    assert picked == [turns(recognize(row, PLAIN, number=number))[1][1] for number in range(50)]
    assert set(picked) == {"4", "four", "IV"}


CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "tool_call", "content": '{"name": "look", "arguments": {"at": "sky"}}'},
        {"from": "function_call", "value": '{"name": "look", "arguments": "{\\"at\\": \\"sky\\"}"}'},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "look", "arguments": '{"at": "sky"}'}}]},
    ],
    ids=["own turn", "sharegpt", "openai", "openai with text arguments"],
)
@pytest.mark.parametrize("tool", ["tool", "tool_response", "observation", "function_response"])
def test_tool_calls_in_every_dialect(turn, tool):
    row = {"messages": [{"role": "user", "content": "?"}, turn, {"role": tool, "content": "blue"}, *_chat()[1:]]}
    messages = recognize(row, PLAIN).messages
    assert messages[1] == Message(role="assistant", content="", extra={"tool_calls": [CALL]})
    assert messages[2] == Message(role="tool", content="blue", alias="" if tool == "tool" else tool)


def test_calls_that_follow_each_other_are_one_turn():
    call = {"role": "tool_call", "content": '{"name": "look", "arguments": {"at": "sky"}}'}
    row = {"messages": [*_chat(), call, call]}
    [_, answer] = recognize(row, PLAIN).messages
    assert (answer.content, answer.extra["tool_calls"]) == ("4", [CALL, CALL])


def test_tools_as_text_or_bare_functions_are_wrapped():
    bare = {"name": "look", "parameters": {}}
    wrapped = {"type": "function", "function": bare}
    for tools in ([bare], [wrapped], json.dumps([bare]), [json.dumps(wrapped)]):
        assert recognize({"query": "?", "response": "!", "tools": tools}, PLAIN).tools == (wrapped,)


@pytest.mark.parametrize("tools", ["", "null", "[]", [], None])
def test_no_tools_are_no_tools(tools):
    assert recognize({"query": "?", "response": "!", "tools": tools}, PLAIN).tools is None


def test_channel_and_loss_are_kept():
    row = {
        "channel": "math",
        "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!", "loss": False}],
    }
    conversation = recognize(row, PLAIN)
    assert conversation.channel == "math"
    assert [message.loss for message in conversation.messages] == [None, False]


REJECTED = {
    "rejected_response": {"query": "2+2?", "response": "4", "rejected_response": "5"},
    "rejected_messages": {
        "messages": _chat(),
        "rejected_messages": [_chat()[0], {"role": "assistant", "content": "5"}],
    },
    "chosen and rejected texts": {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
    "chosen and rejected turns": {
        "chosen": _chat(),
        "rejected": [_chat()[0], {"role": "assistant", "content": "5"}],
    },
    "prompt as turns": {
        "prompt": _chat()[:1],
        "chosen": _chat()[1:],
        "rejected": [{"role": "assistant", "content": "5"}],
    },
    "prompt as text, answers as turns": {
        "prompt": "2+2?",
        "chosen": _chat()[1:],
        "rejected": [{"role": "assistant", "content": "5"}],
    },
}


@pytest.mark.parametrize("row", REJECTED.values(), ids=REJECTED.keys())
def test_preference_pairs(row):
    conversation = recognize(row, PREFERENCE)
    assert turns(conversation) == ASKED
    assert [(m.role, m.content) for m in conversation.rejected] == [("user", "2+2?"), ("assistant", "5")]


@pytest.mark.parametrize(("answer", "is_told"), [("4", False), ("four", True)])
def test_turns_beside_a_pair_are_no_half_of_it(answer, is_told):
    """UltraFeedback has the chosen turns again in messages; TRL reads chosen and rejected only."""
    asked = {"role": "user", "content": "2+2?"}
    chosen, rejected, beside = ([asked, {"role": "assistant", "content": text}] for text in ("4", "5", answer))
    row = {"prompt": "2+2?", "messages": beside, "chosen": chosen, "rejected": rejected}
    pair = recognize(row, PREFERENCE)
    assert turns(pair) == ASKED
    assert [(message.role, message.content) for message in pair.rejected] == [*ASKED[:1], ("assistant", "5")]
    assert pair.notes == (("the turns of chosen and rejected are used, not those of messages",) if is_told else ())
    assert turns(recognize(row, PLAIN)) == [*ASKED[:1], ("assistant", answer)]


def test_the_rejected_answer_replaces_everything_after_the_last_question():
    row = {"system": "S", "messages": [*_chat(), *_chat()], "rejected_response": "5"}
    rejected = recognize(row, PREFERENCE).rejected
    assert [(m.role, m.content) for m in rejected] == [("system", "S"), *ASKED, ("user", "2+2?"), ("assistant", "5")]


BAD = {
    "unknown columns": ({"a": 1}, "no known columns"),
    "no columns": ({}, "no known columns"),
    "no messages": ({"messages": []}, "no messages"),
    "messages is a number": ({"messages": 3}, "messages is not a list"),
    "messages is bad json": ({"messages": "[{"}, "a field is not JSON"),
    "a message is text": ({"messages": ["hi"]}, "a message is not an object"),
    "a message without role": ({"messages": [{"text": "hi"}]}, "a message has no role"),
    "unknown role": ({"messages": [{"role": "king", "content": "hi"}]}, "unknown role"),
    "role is a number": ({"messages": [{"role": 3, "content": "hi"}]}, "unknown role"),
    "the user has the last word": ({"messages": _chat()[:1]}, "the last turn is not the assistant's"),
    "empty response": ({"query": "?", "response": " \n"}, "empty response"),
    "response is an object": ({"query": "?", "response": {"a": 1}}, "a field is not text"),
    "query is true": ({"query": True, "response": "!"}, "a field is not text"),
    "two queries": ({"prompt": "?", "question": "?", "response": "!"}, "several columns could be the query"),
    "history is flat": ({"query": "?", "response": "!", "history": ["a", "b"]}, "history is not a list of"),
    "a round without an answer": (
        {"query": "?", "response": "!", "history": [["a", None]]},
        "history has an empty round",
    ),
    "an image": ({"messages": _chat(), "images": ["a.png"]}, "only text can be trained on"),
    "an image part": (
        {"messages": [{"role": "user", "content": [{"type": "image", "image": "x"}]}, _chat()[1]]},
        "only text can be trained on",
    ),
    "tools is text": ({"query": "?", "response": "!", "tools": "look"}, "a field is not JSON"),
    "a tool is a number": ({"query": "?", "response": "!", "tools": [3]}, "a tool is not an object"),
    "loss is text": (
        {"messages": [_chat()[0], {"role": "assistant", "content": "4", "loss": "yes"}]},
        "loss of a message is neither true nor false",
    ),
    "an endless weight": (
        {"messages": [_chat()[0], {"role": "assistant", "content": "4", "weight": math.inf}]},
        "weight of a message is neither true nor false nor a weight",
    ),
    "a number without end": ({"query": "2+2?", "response": math.inf}, "a field is not text"),
    "a missing answer": ({"query": "2+2?", "response": NAN}, "no known columns"),
    "a missing question": ({"messages": [{"role": "user", "content": NAN}, _chat()[1]]}, "a message has no content"),
    "several questions": ({"question": ["a?", "b?"], "answer": "!"}, "a column holds a list"),
    "a null question": ({"messages": [{"role": "user", "content": None}, _chat()[1]]}, "a message has no content"),
    "a null answer": (
        {"messages": [_chat()[0], {"role": "assistant", "content": None}, *_chat()]},
        "an assistant turn is empty",
    ),
    "two masks": (
        {"messages": [_chat()[0], {"role": "assistant", "content": "4", "loss": 1, "weight": 0}]},
        "a message has two loss masks that differ",
    ),
    "a nameless call": ({"messages": [_chat()[0], {"role": "tool_call", "content": "{}"}]}, "a tool call has no name"),
}


@pytest.mark.parametrize(("row", "reason"), BAD.values(), ids=BAD.keys())
def test_a_bad_row_has_a_reason(row, reason):
    with pytest.raises(RowError) as caught:
        recognize(row, PLAIN)
    assert caught.value.reason.startswith(reason)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"query": "2+2?", "response": "4"}, "no rejected answer"),
        ({"query": "2+2?", "response": "4", "rejected_response": "4"}, "the rejected answer equals the chosen one"),
        ({"query": "2+2?", "response": "4", "rejected_response": ""}, "empty response"),
    ],
)
def test_a_bad_pair_has_a_reason(row, reason):
    with pytest.raises(RowError) as caught:
        recognize(row, PREFERENCE)
    assert caught.value.reason == reason


def _notes(row, settings=PLAIN):
    return recognize(row, settings).notes


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
    assert _notes({"query": "2+2?", "answers": ["4", "four"]}) == ("one of several answers is trained",)


CALLS = {
    "args": {"name": "f", "args": {"a": 1}},
    "arguments beside the function": {"function": {"name": "f"}, "arguments": '{"a": 1}'},
    "the function's own": {"function": {"name": "f", "arguments": {"a": 1}}},
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_arguments_are_found_in_every_dialect(call):
    row = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!", "tool_calls": [call]}]}
    conversation = recognize(row, PLAIN)
    [read] = conversation.messages[1].calls
    assert (read["function"]["name"], dict(read["function"]["arguments"]), conversation.notes) == ("f", {"a": 1}, ())


@pytest.mark.parametrize("role", ["assistant", "tool_call"])
def test_keys_of_calls_that_nothing_reads_are_named(role):
    call = {"name": "f", "arguments": {"a": 1}, "output": "lost", "index": 0}
    turn = {"role": role, "content": json.dumps(call)} if role == "tool_call" else {"role": role, "function_call": call}
    row = {"messages": [{"role": "user", "content": "?"}, turn]}
    assert _notes(row) == ("nothing reads the message key output of a tool call",)


def test_answers_in_a_prompt_are_given_and_those_of_a_conversation_trained():
    asked = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    messages = recognize({"prompt": asked, "completion": "d"}, PLAIN).messages
    assert [message.loss for message in messages] == [None, False, None, None]
    chosen = recognize(
        {"prompt": asked, "chosen": [{"role": "assistant", "content": "d"}], "rejected": "e"}, PREFERENCE
    )
    assert [message.loss for message in chosen.messages] == [None, False, None, None]


@pytest.mark.parametrize("name", ["rejected_messages", "rejected", "rejected_response"])
def test_a_rejected_answer_alone_has_the_question_of_the_chosen_one(name):
    asked = [{"role": "system", "content": "s"}, {"role": "user", "content": "2+2?"}]
    row = {"messages": [*asked, {"role": "assistant", "content": "4"}]}
    rejected = "5" if name == "rejected_response" else [{"role": "assistant", "content": "5"}]
    conversation = recognize({**row, name: rejected}, PREFERENCE)
    told = [(message.role, message.content) for message in conversation.rejected]
    assert told == [("system", "s"), ("user", "2+2?"), ("assistant", "5")]


def test_several_texts_in_one_place_are_not_glued():
    for row in (
        {"messages": [{"role": "user", "content": ["a", "b"]}, {"role": "assistant", "content": "c"}]},
        {"query": "a", "response": "c", "system": ["a", "b"]},
    ):
        with pytest.raises(RowError, match="a column holds a list"):
            recognize(row, PLAIN)


def test_a_tool_has_a_name_and_parameters_under_any_of_their_names():
    asked = {"query": "2+2?", "response": "4"}
    schema = {"properties": {"a": {"type": "string"}}}
    [tool] = recognize({**asked, "tools": {"name": "f", "input_schema": schema}}, PLAIN).tools
    assert tool == {"type": "function", "function": {"name": "f", "parameters": schema}}
    for nameless in ({"type": "web_search"}, {"function": "f"}):
        with pytest.raises(RowError, match="a tool has no name"):
            recognize({**asked, "tools": [nameless]}, PLAIN)


def test_labels_of_tables_are_read():
    labeled = Recognition(needs_label=True)
    row = {"prompt": "2+2?", "completion": "4"}
    assert [recognize({**row, "label": text}, labeled).target for text in ("True", "false", "1", "0")] == [
        (1.0,),
        (0.0,),
        (1.0,),
        (0.0,),
    ]


TOOL_CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
TOOL_RESULT, QUESTION = {"role": "tool", "content": "3"}, {"role": "user", "content": "2+1?"}


def test_answers_that_begin_with_a_tool_result_follow_their_prompt():
    chosen, rejected = ([TOOL_RESULT, {"role": "assistant", "content": text}] for text in "34")
    found = recognize({"prompt": [QUESTION, TOOL_CALL], "chosen": chosen, "rejected": rejected}, PREFERENCE)
    for turns, last in ((found.messages, "3"), (found.rejected, "4")):
        assert [turn.role for turn in turns] == ["user", "assistant", "tool", "assistant"]
        assert turns[-1].content == last


def test_rejected_turns_with_tools_of_their_own_follow_the_question():
    chosen, rejected = ([TOOL_CALL, TOOL_RESULT, {"role": "assistant", "content": text}] for text in "34")
    for system in ([], [{"role": "system", "content": "s"}]):
        row = {"messages": [*system, QUESTION, *chosen], "rejected_messages": rejected}
        assert [turn.content for turn in recognize(row, PREFERENCE).rejected][-4:] == ["2+1?", "", "3", "4"]
        with pytest.raises(RowError, match="the rejected turns begin with a tool result"):
            recognize({**row, "rejected_messages": rejected[1:]}, PREFERENCE)
    row = {"messages": [TOOL_RESULT, *chosen], "rejected_messages": [TOOL_RESULT, *rejected[2:]]}
    assert [turn.content for turn in recognize(row, PREFERENCE).rejected] == ["3", "4"]


def test_a_displaced_system_prompt_of_a_scored_row_is_reported():
    row = {"messages": [{"role": "system", "content": "s"}, QUESTION], "system": "another", "label": 1}
    settings = Recognition(label=Label(problem="single_label_classification", count=2))
    assert "the system prompt among the messages is used" in recognize(row, settings).notes[0]


def test_a_pair_with_different_questions_is_noted():
    """As texts and pictures with different questions; answers to the same one are not noted."""
    settings = Recognition(needs_rejected=True)
    chosen = [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "a"}]
    other = [{"role": "user", "content": "B?"}, {"role": "assistant", "content": "b"}]
    said = "chosen and rejected answer different questions"
    assert said in recognize({"messages": chosen, "rejected_messages": other}, settings).notes
    assert said in recognize({"chosen": chosen, "rejected": other}, settings).notes
    same = [chosen[0], other[1]]
    for row in (
        {"messages": chosen, "rejected_messages": same},
        {"messages": chosen, "rejected_response": "b"},
        {"chosen": chosen, "rejected": same},
        {"prompt": "A?", "chosen": "a", "rejected": "b"},
    ):
        assert said not in recognize(row, settings).notes, row
