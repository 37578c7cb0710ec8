"""Tools in the answer: the text of each format, and which parts of it are trained."""

import json
from itertools import groupby
from operator import itemgetter

import pytest

from megatron_trainer.data.conversation.tool_answers import MARKERS, with_tools_in_answers
from megatron_trainer.data.encoding.encode import Encoder, EncodeSettings
from megatron_trainer.data.row import Record
from megatron_trainer.data.values import Conversation, Message, RowError
from tests.support.models.text_models import chatml_tokenizer

TOKENIZER = chatml_tokenizer()
CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}
TOOLS = [{"type": "function", "function": {"name": "look", "description": "Looks up", "parameters": {}}}]
TURNS = (
    {"role": "user", "content": "What color?"},
    {"role": "assistant", "content": "Thought: I look.", "tool_calls": [CALL, CALL]},
    {"role": "tool", "content": "blue"},
    {"role": "tool", "content": "grey"},
    {"role": "assistant", "content": "Thought: Once more.", "tool_calls": [CALL]},
    {"role": "tool", "content": "red"},
    {"role": "assistant", "content": "Final Answer: It changes."},
)
TEXT_REACT = """Thought: I look.
Action: look
Action Input: {"at": "sky"}
Action: look
Action Input: {"at": "sky"}
Observation:blue
Observation:grey
Thought: Once more.
Action: look
Action Input: {"at": "sky"}
Observation:red
Final Answer: It changes."""
TRAINED_REACT = TEXT_REACT
for result in ("blue\nObservation:grey\n", "red\n"):
    TRAINED_REACT = TRAINED_REACT.replace(result, "|")
TEXT_QWEN = """Thought: I look.
✿FUNCTION✿: look
✿ARGS✿: {"at": "sky"}
✿FUNCTION✿: look
✿ARGS✿: {"at": "sky"}
✿RESULT✿:blue
✿RESULT✿:grey
Thought: Once more.
✿FUNCTION✿: look
✿ARGS✿: {"at": "sky"}
✿RESULT✿:red
Final Answer: It changes."""


def encoded(turns, agent_template, **settings):
    payload = json.dumps({"messages": list(turns), "tools": TOOLS}).encode()
    record = Record(number=0, file="f", line=1, payload=payload)
    [row] = Encoder(TOKENIZER, EncodeSettings(agent_template=agent_template, **settings)).encode([record])
    return row


def text(row):
    return TOKENIZER.decode(row.input_ids[0])


def trained(row, weight=None):
    """The trained text, with a bar for each gap; of parts of this weight only, if one is given."""
    takes = row.weights[0] > 0 if weight is None else row.weights[0] == weight
    runs = groupby(zip(row.input_ids[0], takes, strict=True), key=itemgetter(1))
    return "|".join(TOKENIZER.decode([token for token, _ in run]) for is_taken, run in runs if is_taken)


@pytest.mark.parametrize(
    ("agent_template", "answer"),
    [(name, TEXT_QWEN if name.startswith("qwen") else TEXT_REACT) for name in MARKERS],
)
def test_calls_and_results_are_lines_of_one_answer(agent_template, answer):
    written = text(encoded(TURNS, agent_template))
    system, _, rest = written.partition("<|im_start|>user\n")
    assert rest == f"What color?<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
    assert '{"name": "look", "description": "Looks up", "parameters": {}}' in system
    assert "[look]" in system
    assert MARKERS[agent_template].name in system


def test_results_are_not_trained_and_the_end_is():
    assert trained(encoded(TURNS, "react_en")) == f"{TRAINED_REACT}<|im_end|>"


def test_calls_weigh_more_with_the_strategy_of_their_format():
    row = encoded(TURNS, "react_en", loss_scale="react")
    assert trained(row) == f"{TRAINED_REACT}<|im_end|>"
    heavy = trained(row, weight=2.0)
    assert heavy.count('Action: look\nAction Input: {"at": "sky"}\n') == 3
    assert "Thought" not in heavy
    assert "Final" in trained(row, weight=1.0)


def test_text_after_a_result_is_trained_without_a_keyword_too():
    turns = [*TURNS[:-1], {"role": "assistant", "content": "It changes."}]
    assert trained(encoded(turns, "react_en", loss_scale="react")).endswith("|It changes.<|im_end|>")


def test_a_part_with_loss_false_is_not_trained():
    turns = [{**turn, "loss": False} if turn.get("tool_calls") else turn for turn in TURNS]
    assert trained(encoded(turns, "react_en")) == "Final Answer: It changes.<|im_end|>"


def test_the_rows_own_lines_are_continued():
    """A row may hold the call as text, as the format's users write it, with or without the marker of the result."""
    for ending in ("", "\n", "\nObservation:"):
        turns = [
            TURNS[0],
            {"role": "assistant", "content": f"Action: look\nAction Input: x{ending}"},
            {"role": "tool", "content": "blue\n"},
            {"role": "assistant", "content": "Final Answer: Blue."},
        ]
        answer = "Action: look\nAction Input: x\nObservation:blue\nFinal Answer: Blue."
        assert f"assistant\n{answer}<|im_end|>" in text(encoded(turns, "react_en"))


def test_a_row_without_tools_stays_as_it_is():
    record = Record(number=0, file="f", line=1, payload=b'{"query": "q", "response": "r"}')
    rows = [Encoder(TOKENIZER, EncodeSettings(agent_template=name)).encode([record])[0] for name in (None, "react_en")]
    assert text(rows[0]) == text(rows[1])


def test_a_system_prompt_stands_before_the_tools():
    written = text(encoded([{"role": "system", "content": "Be brief."}, *TURNS], "toolbench"))
    assert written.startswith("<|im_start|>system\nBe brief.\n\nSolve the user's task")


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ((Message(role="user", content="q"), Message(role="tool", content="r")), "follows no answer"),
        (
            (
                Message(role="assistant", content="a", loss=0.5),
                Message(role="tool", content="r"),
                Message(role="assistant", content="b", loss=2.0),
            ),
            "different losses",
        ),
        (
            (
                Message(role="assistant", content="a"),
                Message(role="tool", content="r"),
                Message(role="assistant", content="b", thought="t"),
            ),
            "does not support a thought",
        ),
    ],
)
def test_what_the_format_cannot_write_is_refused(messages, reason):
    with pytest.raises(RowError, match=reason):
        with_tools_in_answers(Conversation(messages=messages), "react_en")
