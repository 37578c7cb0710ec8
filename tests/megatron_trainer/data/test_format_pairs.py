"""Every way to write a pair of a chosen and a rejected answer becomes the same pair, or says why it is none."""

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
