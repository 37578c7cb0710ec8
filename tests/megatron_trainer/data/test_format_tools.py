"""Tools, calls of them and their results, as each dialect writes them."""

import datetime
import decimal
import json

import pytest

from megatron_trainer.data.conversation.formats import recognize
from megatron_trainer.data.values import Message, RowError
from tests.support.data.plain_conversation import PLAIN, chat


def test_functions_are_tools_and_data_of_a_tool_is_text():
    row = {"functions": [{"name": "look"}], "messages": [*chat(), {"role": "tool", "content": {"a": 1}}, *chat()]}
    conversation = recognize(row, PLAIN)
    assert conversation.tools == ({"type": "function", "function": {"name": "look"}},)
    assert conversation.messages[2].content == '{"a": 1}'


@pytest.mark.parametrize(
    "value", [b"x", datetime.date(2026, 1, 1), decimal.Decimal("1.5")], ids=["bytes", "day", "decimal"]
)
@pytest.mark.parametrize("place", ["result", "call", "turn", "tools"])
def test_what_json_does_not_have_drops_the_row(place, value):
    """Tables hold such values; the JSON of a call or a result would end the run."""
    function = {"name": "look", "arguments": {"at": value}}
    turn = {
        "result": {"role": "tool", "content": {"at": value}},
        "call": {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]},
        "turn": {"role": "tool_call", "content": function},
        "tools": {"role": "tool", "content": "x"},
    }[place]
    tools = {"tools": [{"name": "look", "parameters": {"at": value}}]} if place == "tools" else {}
    with pytest.raises(RowError) as caught:
        recognize({"messages": [*chat(), turn, *chat()], **tools}, PLAIN)
    assert caught.value.reason == "a field has no form in JSON"


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
    row = {"messages": [{"role": "user", "content": "?"}, turn, {"role": tool, "content": "blue"}, *chat()[1:]]}
    messages = recognize(row, PLAIN).messages
    assert messages[1] == Message(role="assistant", content="", extra={"tool_calls": [CALL]})
    assert messages[2] == Message(role="tool", content="blue", alias="" if tool == "tool" else tool)


def test_calls_and_results_among_the_parts_of_turns_are_calls_and_results():
    """As Anthropic's API has them: a result is part of the user's next turn."""
    said = {"type": "text", "text": "I look."}
    call = {"type": "tool_use", "id": "c1", "name": "look", "input": {"at": "sky"}}
    blue = {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "blue"}]}
    cold = {"type": "tool_result", "tool_use_id": "c2", "content": "cold"}
    asked, answer = {"role": "user", "content": "?"}, {"role": "assistant", "content": "Blue."}
    results = {"role": "user", "content": [blue, cold, {"type": "text", "text": "Well?"}]}
    row = {"messages": [asked, {"role": "assistant", "content": [said, call]}, results, answer]}
    found = recognize(row, PLAIN)
    assert [(turn.role, turn.content) for turn in found.messages] == [
        ("user", "?"),
        ("assistant", "I look."),
        ("tool", "blue"),
        ("tool", "cold"),
        ("user", "Well?"),
        ("assistant", "Blue."),
    ]
    assert found.messages[1].extra == {"tool_calls": [{**CALL, "id": "c1"}]}
    assert [turn.extra for turn in found.messages[2:4]] == [{"tool_call_id": "c1"}, {"tool_call_id": "c2"}]
    assert found.notes == ()
    [_, wordless, *_] = recognize(
        {"messages": [asked, {"role": "assistant", "content": [call]}, results, answer]}, PLAIN
    ).messages
    assert (wordless.content, len(wordless.calls)) == ("", 1)


def test_a_turn_of_a_call_may_have_a_thought():
    call = {"role": "tool_call", "content": '{"name": "look", "arguments": {"at": "sky"}}', "reasoning_content": "hm"}
    found = recognize({"messages": [chat()[0], call]}, PLAIN)
    assert (found.messages[1].thought, found.messages[1].calls, found.notes) == ("hm", [CALL], ())


def test_calls_that_follow_each_other_are_one_turn():
    call = {"role": "tool_call", "content": '{"name": "look", "arguments": {"at": "sky"}}'}
    row = {"messages": [*chat(), call, call]}
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
    assert recognize(row, PLAIN).notes == ("nothing reads the message key output of a tool call",)


def test_a_tool_has_a_name_and_parameters_under_any_of_their_names():
    asked = {"query": "2+2?", "response": "4"}
    schema = {"properties": {"a": {"type": "string"}}}
    [tool] = recognize({**asked, "tools": {"name": "f", "input_schema": schema}}, PLAIN).tools
    assert tool == {"type": "function", "function": {"name": "f", "parameters": schema}}
    for nameless in ({"type": "web_search"}, {"function": "f"}):
        with pytest.raises(RowError, match="a tool has no name"):
            recognize({**asked, "tools": [nameless]}, PLAIN)
