"""Every way to write a pair of a chosen and a rejected answer becomes the same pair, or says why it is none."""

import json

import pytest

from megatron_trainer.data.conversation.formats import Recognition, recognize
from megatron_trainer.data.values import RowError
from tests.support.data.plain_conversation import ASKED, PLAIN, chat, turns

PREFERENCE = Recognition(needs_rejected=True)
REJECTED = {
    "rejected_response": {"query": "2+2?", "response": "4", "rejected_response": "5"},
    "rejected_messages": {
        "messages": chat(),
        "rejected_messages": [chat()[0], {"role": "assistant", "content": "5"}],
    },
    "chosen and rejected texts": {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
    "chosen and rejected turns": {
        "chosen": chat(),
        "rejected": [chat()[0], {"role": "assistant", "content": "5"}],
    },
    "prompt as turns": {
        "prompt": chat()[:1],
        "chosen": chat()[1:],
        "rejected": [{"role": "assistant", "content": "5"}],
    },
    "single turns beside messages, as in LLaMA-Factory": {
        "conversations": [{"from": "human", "value": "2+2?"}],
        "chosen": {"from": "gpt", "value": "4"},
        "rejected": {"from": "gpt", "value": "5"},
    },
    "texts beside messages": {"messages": chat()[:1], "chosen": "4", "rejected": "5"},
    "turns beside messages": {
        "messages": chat()[:1],
        "chosen": chat()[1:],
        "rejected": [{"role": "assistant", "content": "5"}],
    },
    "turns of a table": {
        "prompt": json.dumps(chat()[:1]),
        "chosen": json.dumps(chat()[1:]),
        "rejected": str([{"role": "assistant", "content": "5"}]),
    },
    "lists of one text": {"prompt": "2+2?", "chosen": ["4"], "rejected": ["5"]},
    "prompt as text, answers as turns": {
        "prompt": "2+2?",
        "chosen": chat()[1:],
        "rejected": [{"role": "assistant", "content": "5"}],
    },
}


@pytest.mark.parametrize("row", REJECTED.values(), ids=REJECTED.keys())
def test_preference_pairs(row):
    conversation = recognize(row, PREFERENCE)
    assert turns(conversation.messages) == ASKED
    assert turns(conversation.rejected) == [("user", "2+2?"), ("assistant", "5")]


@pytest.mark.parametrize(("answer", "is_told"), [("4", False), ("four", True)])
def test_turns_beside_a_pair_are_no_half_of_it(answer, is_told):
    """UltraFeedback has the chosen turns again in messages; TRL reads chosen and rejected only."""
    asked = {"role": "user", "content": "2+2?"}
    chosen, rejected, beside = ([asked, {"role": "assistant", "content": text}] for text in ("4", "5", answer))
    row = {"prompt": "2+2?", "messages": beside, "chosen": chosen, "rejected": rejected}
    pair = recognize(row, PREFERENCE)
    assert turns(pair.messages) == ASKED
    assert turns(pair.rejected) == [ASKED[0], ("assistant", "5")]
    assert pair.notes == (("the turns of chosen and rejected are used, not those of messages",) if is_told else ())
    assert turns(recognize(row, PLAIN).messages) == [ASKED[0], ("assistant", answer)]


def test_the_rejected_answer_replaces_everything_after_the_last_question():
    row = {"system": "S", "messages": [*chat(), *chat()], "rejected_response": "5"}
    rejected = recognize(row, PREFERENCE).rejected
    assert turns(rejected) == [("system", "S"), *ASKED, ("user", "2+2?"), ("assistant", "5")]


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
    assert turns(conversation.rejected) == [("system", "s"), ("user", "2+2?"), ("assistant", "5")]


TOOL_CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
TOOL_RESULT, QUESTION = {"role": "tool", "content": "3"}, {"role": "user", "content": "2+1?"}


def test_answers_that_begin_with_a_tool_result_follow_their_prompt():
    chosen, rejected = ([TOOL_RESULT, {"role": "assistant", "content": text}] for text in "34")
    found = recognize({"prompt": [QUESTION, TOOL_CALL], "chosen": chosen, "rejected": rejected}, PREFERENCE)
    for messages, last in ((found.messages, "3"), (found.rejected, "4")):
        assert [turn.role for turn in messages] == ["user", "assistant", "tool", "assistant"]
        assert messages[-1].content == last


def test_rejected_turns_with_tools_of_their_own_follow_the_question():
    chosen, rejected = ([TOOL_CALL, TOOL_RESULT, {"role": "assistant", "content": text}] for text in "34")
    for system in ([], [{"role": "system", "content": "s"}]):
        row = {"messages": [*system, QUESTION, *chosen], "rejected_messages": rejected}
        assert [turn.content for turn in recognize(row, PREFERENCE).rejected][-4:] == ["2+1?", "", "3", "4"]
        with pytest.raises(RowError, match="the rejected turns begin with a tool result"):
            recognize({**row, "rejected_messages": rejected[1:]}, PREFERENCE)
    row = {"messages": [TOOL_RESULT, *chosen], "rejected_messages": [TOOL_RESULT, *rejected[2:]]}
    assert [turn.content for turn in recognize(row, PREFERENCE).rejected] == ["3", "4"]


def test_a_pair_with_different_questions_is_noted():
    """As texts and pictures with different questions; answers to the same one are not noted."""
    chosen = [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "a"}]
    other = [{"role": "user", "content": "B?"}, {"role": "assistant", "content": "b"}]
    said = "chosen and rejected answer different questions"
    assert said in recognize({"messages": chosen, "rejected_messages": other}, PREFERENCE).notes
    assert said in recognize({"chosen": chosen, "rejected": other}, PREFERENCE).notes
    same = [chosen[0], other[1]]
    for row in (
        {"messages": chosen, "rejected_messages": same},
        {"messages": chosen, "rejected_response": "b"},
        {"chosen": chosen, "rejected": same},
        {"prompt": "A?", "chosen": "a", "rejected": "b"},
    ):
        assert said not in recognize(row, PREFERENCE).notes, row


EARLIER = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]


@pytest.mark.parametrize("answer", [lambda text: text, lambda text: [{"role": "assistant", "content": text}]])
@pytest.mark.parametrize(
    "row",
    [{"messages": [*EARLIER, chat()[0]]}, {"query": "2+2?", "history": [["1+1?", "2"]]}],
    ids=["messages", "history"],
)
def test_both_answers_of_a_pair_follow_all_earlier_rounds(row, answer):
    pair = recognize({**row, "chosen": answer("4"), "rejected": answer("5")}, PREFERENCE)
    asked = [("user", "1+1?"), ("assistant", "2"), ("user", "2+2?")]
    assert turns(pair.messages) == [*asked, ("assistant", "4")]
    assert turns(pair.rejected) == [*asked, ("assistant", "5")]
    assert pair.notes == ()


def test_messages_that_end_with_another_answer_than_the_chosen_one_are_noted():
    row = {"messages": chat(), "chosen": "four", "rejected": "5"}
    assert recognize(row, PREFERENCE).notes == ("the last answer of the messages is used, not that of chosen",)
    assert recognize({**row, "chosen": "4"}, PREFERENCE).notes == ()


def test_of_as_many_chosen_and_rejected_texts_those_in_one_place_are_a_pair():
    row = {"prompt": "?", "chosen": ["a", "b", "c"], "rejected": ["A", "B", "C"]}
    pairs = [recognize(row, PREFERENCE, number=number) for number in range(20)]
    assert {pair.messages[-1].content.upper() for pair in pairs} == {"A", "B", "C"}
    assert all(pair.messages[-1].content.upper() == pair.rejected[-1].content for pair in pairs)
    assert pairs[0].notes == ("one of several answers is trained",)


def test_turns_that_a_table_broke_are_refused_and_not_trained_as_text():
    """As numpy prints a list of turns: without a comma between them."""
    broken = "[{'content': '2+2?', 'role': 'user'}\n {'content': '4', 'role': 'assistant'}]"
    for name in ("prompt", "chosen", "rejected"):
        with pytest.raises(RowError, match="a field is not JSON"):
            recognize({"prompt": "?", "chosen": "4", "rejected": "5", name: broken}, PREFERENCE)


@pytest.mark.parametrize("name", ["label", "labels", "kto_tag"])
@pytest.mark.parametrize(
    ("value", "target"), [(True, 1.0), (0, 0.0), ("True", 1.0), (" false", 0.0), ("1", 1.0), ("0.0", 0.0)]
)
def test_whether_an_answer_is_desirable_is_read_under_each_name_and_from_tables(name, value, target):
    row = {"prompt": "2+2?", "completion": "4", name: value}
    assert recognize(row, Recognition(needs_label=True)).target == (target,)


def test_a_margin_of_a_table_is_a_number():
    row = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
    ranked = Recognition(needs_rejected=True, needs_margin=True)
    assert recognize({**row, "margin": "0.5"}, ranked).target == (0.5,)
    with pytest.raises(RowError, match="the margin is not a number"):
        recognize({**row, "margin": "much"}, ranked)
