"""Effects of the arguments about what the model reads of a row: template, tools, thoughts, what of it is trained."""

import pytest

from megatron_trainer.failure import InvalidInput
from tests.effects.registry import effect
from tests.support.data.answers import answers, text, trained


@effect("template")
def test_template_renders_instead_of_the_tokenizers(prepared):
    assert (
        text(prepared(template="zephyr", dataset_shuffle=False).train[0]) == "<|user|>\nq0</s>\n<|assistant|>\nr0</s>"
    )


@effect("template")
def test_a_name_of_the_models_own_template_renders_that_one(prepared):
    assert text(prepared(template="qwen2_5").train[0]) == text(prepared().train[0])


@effect("system")
def test_system_is_the_prompt_of_rows_without_one(prepared):
    assert "system\nYou are a test assistant<|im_end|>" in text(prepared().train[0])
    assert "system\nBe brief.<|im_end|>" in text(prepared(system="Be brief.").train[0])


@effect("truncation_strategy")
def test_truncation_strategy_drops_or_cuts_a_long_sample(prepared, write):
    path = write("long.jsonl", [{"query": "q", "response": "r"}, {"query": "x" * 20, "response": "y" * 120}])
    common = {"dataset": [path], "max_length": 110, "dataset_shuffle": False}
    kept, left, right = (prepared(**common, truncation_strategy=way).train for way in ("delete", "left", "right"))
    assert [len(kept), len(left), len(right)] == [1, 2, 2]
    assert left[1].length == right[1].length == 110
    assert text(left[1]).endswith("<|im_end|>\n")
    assert text(right[1]).startswith("<|im_start|>system")


@effect("use_chat_template")
def test_use_chat_template_false_leaves_question_and_answer(prepared):
    sample = prepared(use_chat_template=False, dataset_shuffle=False).train[0]
    assert text(sample) == "q0r0<|endoftext|>"


@effect("loss_scale")
def test_loss_scale_decides_which_tokens_are_trained_and_how_much(prepared, write):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "Action: look"}]
    common = {"dataset": [write("chat.jsonl", [{"messages": turns * 2}])]}
    [default], [last], [every], [react] = (
        prepared(**common, loss_scale=name).train for name in ("default", "last_round", "all", "react")
    )
    assert trained(default) == "Action: look" * 2
    assert trained(last) == "Action: look"
    assert "assistant" in trained(every)
    assert sorted(set(react.loss_scale.tolist())) == [0, 1, 2]


REASONING = """{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' and loop.last %}
{{- '<think>\\n' + (message.reasoning_content or '') + '\\n</think>\\n\\n' }}{% endif %}
{{- message.content + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}
{%- if level is defined %}{{ '[' + level + ']' }}{% endif %}"""


@pytest.fixture
def reasoning(tmp_path):
    """The file of a chat template that prints only the thought of the last answer."""
    path = tmp_path / "reasoning.jinja"
    path.write_text(REASONING)
    return str(path)


def thoughts(count):
    return [
        turn
        for number in range(count)
        for turn in (
            {"role": "user", "content": f"q{number}"},
            {"role": "assistant", "content": f"r{number}", "reasoning_content": f"t{number}"},
        )
    ]


@effect("preserve_thinking")
def test_preserve_thinking_keeps_thoughts_that_the_template_takes_away(prepared, write, reasoning):
    common = {"dataset": [write("thoughts.jsonl", [{"messages": thoughts(2)}])], "template": reasoning}
    first, last = "<think>\nt0\n</think>\n\nr0", "<think>\nt1\n</think>\n\nr1"
    assert answers(prepared(**common).train) == [f"{first}{last}"]
    assert answers(prepared(**common, loss_scale="last_round").train) == [last]
    assert "t0" not in text(prepared(**common, loss_scale="last_round").train[0])
    assert first in text(prepared(**common, loss_scale="last_round", preserve_thinking=True).train[0])
    with pytest.raises(InvalidInput, match="the chat template leaves out a thought"):
        prepared(**common, preserve_thinking=False)


@effect("enable_thinking", "chat_template_kwargs")
def test_enable_thinking_and_chat_template_kwargs_are_variables_of_the_template(prepared, reasoning):
    common = {"template": reasoning, "dataset_shuffle": False}
    assert answers(prepared(**common).train)[0] == "<think>\n\n</think>\n\nr0"
    assert answers(prepared(**common, enable_thinking=False).train)[0] == "r0"
    assert text(prepared(**common, chat_template_kwargs={"level": "high"}).train[0]).endswith("[high]")


@effect("add_non_thinking_prefix")
def test_add_non_thinking_prefix_puts_an_empty_thought_before_answers_without_one(prepared, write, reasoning):
    rounds = [{key: entry for key, entry in turn.items() if key != "reasoning_content"} for turn in thoughts(2)]
    common = {"dataset": [write("plain.jsonl", [{"messages": rounds}])], "template": reasoning}
    empty = "<think>\n\n</think>\n\n"
    assert answers(prepared(**common).train) == [f"r0{empty}r1"]
    assert answers(prepared(**common, add_non_thinking_prefix=True).train) == [f"{empty}r0{empty}r1"]
    assert answers(prepared(**common, add_non_thinking_prefix=False).train) == ["r0r1"]


@effect("stop_words")
def test_stop_words_end_answers_that_the_template_leaves_open(prepared, tmp_path):
    path = tmp_path / "open.jinja"
    path.write_text("{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}")
    with pytest.raises(InvalidInput, match="no token that stops generation; set stop_words"):
        prepared(template=str(path))
    run = prepared(template=str(path), stop_words=["<|endoftext|>"], dataset_shuffle=False)
    assert trained(run.train[0]) == "r0<|endoftext|>"
    assert run.report.stop_words == ("<|endoftext|>",)


@effect("keep_incomplete_rows")
def test_keep_incomplete_rows_trains_and_counts_what_is_dropped_otherwise(prepared, write, rows):
    call = {"type": "function", "function": {"name": "look", "arguments": {}}}
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "Well.", "tool_calls": [call]}]
    path = write("calls.jsonl", [*rows, {"messages": turns}])
    dropped = prepared(dataset=[path]).report.datasets[0]
    assert [(drop.rows, drop.reason) for drop in dropped.dropped] == [(1, "the chat template leaves out a tool call")]
    kept = prepared(dataset=[path], keep_incomplete_rows=True).report.datasets[0]
    assert (kept.rows_kept, kept.notes) == (21, ("1 row: the chat template leaves out a tool call",))


@effect("split_turns")
def test_split_turns_makes_a_row_of_each_answer(prepared, write):
    turns = [{"role": role, "content": f"{role}{n}"} for n in range(3) for role in ("user", "assistant")]
    path = write("rounds.jsonl", [{"messages": turns}])
    run = prepared(dataset=[path], split_turns=True, dataset_shuffle=False)
    assert [trained(item) for item in run.train] == [f"assistant{n}" for n in range(3)]


@effect("agent_template")
def test_agent_template_hermes_writes_tools_as_text_for_a_template_without_them(prepared, write):
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}
    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "Well.", "tool_calls": [call, call]},
        {"role": "tool", "content": "blue"},
        {"role": "tool", "content": "grey"},
        {"role": "assistant", "content": "r"},
    ]
    tools = [{"name": "look", "description": "Looks", "parameters": {}}]
    common = {"dataset": [write("calls.jsonl", [{"messages": turns, "tools": tools}])], "max_length": 2000}
    with pytest.raises(InvalidInput, match="leaves out a tool call"):
        prepared(**common)
    [sample] = prepared(**common, agent_template="hermes").train
    written = '<tool_call>\n{"name": "look", "arguments": {"at": "sky"}}\n</tool_call>'
    assert trained(sample) == f"Well.\n{written}\n{written}r"
    assert "user\n<tool_response>\nblue\n</tool_response>\n\n<tool_response>\ngrey\n</tool_response><" in text(sample)
    assert '"description": "Looks"' in text(sample).partition("user\n")[0]
    own = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]
    common["dataset"] = [write("none.jsonl", [{"messages": own}])]
    assert text(prepared(**common, agent_template="hermes").train[0]) == text(prepared(**common).train[0])


@effect("agent_template")
def test_agent_template_react_writes_calls_and_results_into_the_answer(prepared, write):
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}
    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "Thought: Well.", "tool_calls": [call]},
        {"role": "tool", "content": "blue"},
        {"role": "assistant", "content": "Final Answer: r"},
    ]
    tools = [{"name": "look", "description": "Looks", "parameters": {}}]
    path = write("calls.jsonl", [{"messages": turns, "tools": tools}])
    [sample] = prepared(dataset=[path], max_length=2000, agent_template="react_en").train
    called = 'Thought: Well.\nAction: look\nAction Input: {"at": "sky"}\nObservation:'
    assert trained(sample) == f"{called}Final Answer: r"
    assert f"assistant\n{called}blue\nFinal Answer: r<" in text(sample)
    assert '"description": "Looks"' in text(sample).partition("user\n")[0]
