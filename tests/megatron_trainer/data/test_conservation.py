"""What a chat template does not print is never lost without a word, and answers end where a model can stop."""

from __future__ import annotations

import json

import pytest

from megatron_trainer.data.conversation.chat_template import TemplateSettings
from megatron_trainer.data.encoding.encode import Encoder, EncodeSettings
from megatron_trainer.data.row import Record
from megatron_trainer.data.values import Rejection
from megatron_trainer.failure import InvalidInput
from tests.support.models.text_models import LLAMA3, SMOL, THINKING, chatml_tokenizer, llama_tokenizer

ASK = {"role": "user", "content": "Where is Paris now?"}
CALL = {"type": "function", "id": "a", "function": {"name": "look_up", "arguments": {"city": "Paris"}}}
CALL_AS_TEXT = {**CALL, "function": {"name": "look_up", "arguments": '{"city":"Paris"}'}}
TOOLS = [{"name": "look_up", "description": "Finds a city", "parameters": {"properties": {"city": {"type": "string"}}}}]
RESULT = {"role": "tool", "content": "in the north", "tool_call_id": "a"}
ANSWER = {"role": "assistant", "content": "In the north."}


def answer(content, **fields):
    return {"role": "assistant", "content": content, **fields}


def encode(row, template=SMOL, tokenizer=None, **settings):
    encoder = Encoder(tokenizer or chatml_tokenizer(template), EncodeSettings(**settings))
    [result] = encoder.encode([Record(0, "data.jsonl", 1, row)])
    return result


def rendered(row, template=SMOL, tokenizer=None, **settings):
    """(text, trained text) of a row that is kept."""
    tokenizer = tokenizer or chatml_tokenizer(template)
    result = encode(row, tokenizer=tokenizer, **settings)
    assert not isinstance(result, Rejection), result
    ids = result.input_ids[0]
    return tokenizer.decode(ids), tokenizer.decode(ids[result.weights[0] > 0])


LOST = {
    "a tool call": [ASK, answer(None, tool_calls=[CALL]), RESULT, ANSWER],
    "a tool call in the older form": [ASK, answer(None, function_call=CALL["function"]), ANSWER],
    "a tool call beside words": [ASK, answer("Let me look.", tool_calls=[CALL])],
    "a thought": [ASK, answer("Here.", reasoning_content="I look around.")],
    "a thought under its other names": [ASK, answer("Here.", thinking="I look around.")],
    "a thought as a part": [
        ASK,
        answer([{"type": "thinking", "thinking": "I look around."}, {"type": "text", "text": "Here."}]),
    ],
}


@pytest.mark.parametrize(("kind", "messages"), LOST.items(), ids=LOST.keys())
def test_a_part_without_a_place_drops_the_row(kind, messages):
    reason = "the chat template leaves out " + ("a thought" if "thought" in kind else "a tool call")
    assert encode({"messages": messages}).reason == reason
    kept = encode({"messages": messages}, keeps_incomplete=True)
    assert reason in kept.notes


def test_names_of_speakers_that_the_template_does_not_print_are_noted():
    row = {"messages": [{**ASK, "name": "Zoe_7"}, {**ANSWER, "name": None}]}
    assert encode(row).notes == ("the chat template leaves out the names of speakers (name)",)
    naming = SMOL.replace("message['role'] +", "message['role'] + (message['name'] or '') +", 1)
    assert "Zoe_7" in rendered(row, template=naming)[0]
    assert encode(row, template=naming).notes == ()


def test_tools_results_and_system_prompts_without_a_place_drop_the_row():
    silent = SMOL.replace("{% for message in messages %}", "{% for message in messages if message.role != 'tool' %}")
    row = {"messages": [ASK, answer("Let me look."), RESULT, ANSWER]}
    assert encode(row, silent).reason == "the chat template leaves out a tool result"
    assert encode({"messages": [ASK, ANSWER], "tools": TOOLS}).reason == "the chat template leaves out a tool"
    headless = SMOL.replace(
        "{% for message in messages %}", "{% for message in messages if message.role != 'system' %}"
    )
    row = {"messages": [{"role": "system", "content": "Be brief."}, ASK, ANSWER]}
    assert encode(row, headless).reason == "the chat template leaves out the system prompt"


def test_a_short_word_is_not_mistaken_for_what_the_template_always_prints():
    silent = SMOL.replace("{% for message in messages %}", "{% for message in messages if message.role != 'tool' %}")
    row = {"messages": [ASK, answer("Let me look."), {**RESULT, "content": "m"}, ANSWER]}
    assert encode(row, silent).reason == "the chat template leaves out a tool result"


TEXT_ARGUMENTS = SMOL.replace("message['content'] +", "message['content'] + (message.tool_calls[0].function.name + "
    "message.tool_calls[0].function.arguments if message.tool_calls else '') +")  # fmt: skip
PYTHON_ARGUMENTS = TEXT_ARGUMENTS.replace("function.arguments", "function.arguments | string")
NINE = SMOL.replace("{{ '<|im_start|>' + message['role']", "{% if message.role == 'tool' and message.tool_call_id | "
    "length != 9 %}{{ raise_exception('nine') }}{% endif %}{{ (message.tool_calls | tojson if message.tool_calls else "
    "'') + '<|im_start|>' + message['role']")  # fmt: skip


@pytest.mark.parametrize("call", [CALL, CALL_AS_TEXT], ids=["object", "text"])
@pytest.mark.parametrize("template", [TEXT_ARGUMENTS, PYTHON_ARGUMENTS], ids=["joined as text", "printed as it is"])
def test_arguments_are_tried_as_text_and_as_object(template, call):
    text, _ = rendered({"messages": [ASK, answer("", tool_calls=[call]), RESULT, ANSWER]}, template)
    written = call["function"]["arguments"]
    assert "look_up" + (written if isinstance(written, str) else json.dumps(written)) in text


def test_call_ids_are_made_up_where_a_template_wants_nine_characters():
    calls = [{**CALL, "id": None}, {**CALL, "id": "b", "function": {"name": "other", "arguments": {}}}]
    results = [{**RESULT, "tool_call_id": "b", "content": "second"}, {"role": "tool", "content": "first"}]
    text, _ = rendered({"messages": [ASK, answer("", tool_calls=calls), *results, ANSWER]}, NINE)
    assert '"id": "000000000"' in text
    assert '"id": "000000001"' in text


@pytest.mark.parametrize("dialect", ["weight", "train", "training", "loss"])
def test_loss_masks_of_every_dialect(dialect):
    wrong, right = {**answer("WRONG"), dialect: 0}, {**answer("Right."), dialect: 1}
    _, trained = rendered({"messages": [ASK, wrong, ASK, right]})
    assert trained == "Right.<|im_end|>"


def test_a_number_as_mask_is_the_weight_of_the_answer():
    result = encode({"messages": [ASK, {**answer("Half."), "loss": 0.5}, ASK, answer("Whole.")]})
    assert set(result.weights[0].tolist()) == {0, 0.5, 1}
    assert result.is_weighted
    assert encode({"messages": [ASK, {**ANSWER, "loss": True, "weight": 0}]}).reason == (
        "a message has two loss masks that differ"
    )


def test_thoughts_of_earlier_trained_turns_are_kept_as_the_model_generates_them():
    turns = [ASK, answer("<think>\nhm\n</think>\n\n1"), ASK, answer("2", reasoning="well")]
    expected = "<think>\nhm\n</think>\n\n1<|im_end|><think>\nwell\n</think>\n\n2<|im_end|>"
    assert rendered({"messages": turns}, THINKING)[1] == expected
    text, trained = rendered({"messages": turns}, THINKING, loss_scale="last_round")
    assert "hm" not in text
    assert trained == "<think>\nwell\n</think>\n\n2<|im_end|>"
    never = TemplateSettings(preserve_thinking=False)
    assert encode({"messages": turns}, THINKING, chat=never).reason == "the chat template leaves out a thought"


def test_two_thoughts_in_a_row_are_both_there():
    turns = [ASK, answer("One.", thinking="first"), answer("Two.", thinking="second"), ASK, ANSWER]
    text, _ = rendered({"messages": turns}, THINKING)
    assert all(part in text for part in ("first", "second", "One.", "Two."))


def test_neighbors_stand_apart_or_with_a_blank_line():
    turns = [{"role": "user", "content": "near the bank"}, {"role": "user", "content": "Now tell me"}, ANSWER]
    assert "near the bank<|im_end|>\n<|im_start|>user\nNow tell me" in rendered({"messages": turns})[0]
    strict = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
    )
    strict += "{% endif %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}{% endfor %}"
    assert "near the bank\n\nNow tell me" in rendered({"messages": turns}, strict)[0]


ENDS = {
    "an added token that is not special": "{{ m.content + '<end>' }}",
    "end of sequence between rounds only": "{{ m.content + ('' if loop.last else '<|endoftext|>') }}",
    "end of sequence after the last only": "{{ m.content + ('<|endoftext|>' if loop.last else '') }}",
}


@pytest.mark.parametrize("body", ENDS.values(), ids=ENDS.keys())
def test_each_trained_answer_ends_with_a_stop_token(body):
    tokenizer = chatml_tokenizer("{% for m in messages %}{{ m.role + ': ' }}" + body + "{{ '\n' }}{% endfor %}")
    tokenizer.add_tokens(["<end>"])
    _, trained = rendered({"messages": [ASK, answer("One."), ASK, answer("Two.")]}, tokenizer=tokenizer)
    stop = "<end>" if "<end>" in body else "<|endoftext|>"
    assert trained == f"One.{stop}Two.{stop}"


def test_turns_that_end_where_the_next_role_begins_are_trained_to_stop_there():
    tokenizer = llama_tokenizer("{% for m in messages %}{{ '<|start_header_id|>' if m.role == 'user' else "
        "'<|end_header_id|>' }}{{ m.content }}{% endfor %}")  # fmt: skip
    _, trained = rendered({"messages": [ASK, answer("One."), ASK, answer("Two.")]}, tokenizer=tokenizer)
    assert trained == "One.<|start_header_id|>Two.<|start_header_id|>"


def test_a_plain_text_end_mark_needs_stop_words():
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + ' ###\n' }}{% endfor %}"
    with pytest.raises(InvalidInput, match="no token that stops generation; set stop_words"):
        encode({"messages": [ASK, ANSWER]}, template)
    _, trained = rendered({"messages": [ASK, ANSWER]}, template, chat=TemplateSettings(stop_words=("###",)))
    assert trained.strip() == "In the north. ###"


def test_a_call_that_ends_with_another_token_is_trained_up_to_it():
    row = {"messages": [ASK, answer(None, tool_calls=[CALL]), RESULT, ANSWER]}
    _, trained = rendered(row, tokenizer=llama_tokenizer(LLAMA3))
    assert trained == '{"name": "look_up", "parameters": {"city": "Paris"}}<|eom_id|>In the north.<|eot_id|>'


def test_words_before_a_thought_are_an_answer_that_no_template_may_cut():
    row = {"messages": [ASK, answer("I say\n<think>\nhm\n</think>\n\nso")]}
    assert rendered(row)[1] == "I say\n<think>\nhm\n</think>\n\nso<|im_end|>"
    assert encode(row, THINKING).reason == "the chat template leaves out an answer"


@pytest.mark.parametrize("words", ["<think>", "a <|im_end|>", "Do say <|im_start|> whenever I ask for the marks"])
def test_marks_that_a_row_itself_holds_are_not_missed(words):
    for messages in ([{"role": "user", "content": words}, ANSWER], [{"role": "system", "content": words}, ASK, ANSWER]):
        assert words in rendered({"messages": messages, "tools": None})[0]
