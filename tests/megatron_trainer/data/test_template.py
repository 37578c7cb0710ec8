"""Templates besides the tokenizer's own, how one is chosen, and what is trained under each loss_scale."""

from dataclasses import replace

import pytest

from megatron_trainer.data.conversation.declared_template import BUILT_IN, DeclaredTemplate
from megatron_trainer.data.conversation.formats import Recognition
from megatron_trainer.data.conversation.template import choose_template
from megatron_trainer.data.encoding.encode import TOO_LONG, Encoder, EncodeSettings
from megatron_trainer.data.row import Record
from megatron_trainer.data.values import Message, Rejection, RowError
from megatron_trainer.failure import InvalidInput
from megatron_trainjob.args.groups.base_template import BUILT_IN_TEMPLATES
from tests.support.models.text_models import SMOL, chatml_tokenizer, llama_tokenizer

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "Three?"},
    {"role": "assistant", "content": "3"},
]
NO_SYSTEM = CHAT[1:]
ONE_ROUND = CHAT[1:3]


def encode(tokenizer, row, **settings):
    [result] = Encoder(tokenizer, EncodeSettings(**settings)).encode([Record(0, "data.jsonl", 7, row)])
    return result


def trained(tokenizer, row, **settings):
    result = encode(tokenizer, row, **settings)
    assert not isinstance(result, Rejection), result
    return tokenizer.decode(result.input_ids[0]), tokenizer.decode(result.input_ids[0][result.weights[0] > 0])


def test_built_in_chatml_equals_the_tokenizers_template_up_to_the_last_line_end():
    text, labels = trained(chatml_tokenizer(None), {"messages": CHAT}, template="chatml")
    own, own_labels = trained(chatml_tokenizer(SMOL), {"messages": CHAT})
    assert (text + "\n", labels) == (own, own_labels)


def test_built_in_llama3_equals_the_tokenizers_template():
    assert trained(llama_tokenizer(None), {"messages": CHAT}, template="llama3") == trained(
        llama_tokenizer(), {"messages": CHAT}
    )


def test_plain_template_is_question_and_answer_and_eos():
    text, labels = trained(chatml_tokenizer(), {"messages": ONE_ROUND}, use_chat_template=False)
    assert (text, labels) == ("Two?2<|endoftext|>", "2<|endoftext|>")


def test_text_for_pre_training_is_trained_whole_except_its_first_token():
    tokenizer = chatml_tokenizer()
    result = encode(tokenizer, {"text": "The quick fox"}, use_chat_template=False, loss_scale="all")
    assert tokenizer.decode(result.input_ids[0]) == "The quick fox<|endoftext|>"
    assert result.weights[0].tolist() == [0] + [1] * (len(result.input_ids[0]) - 1)


def test_pieces_from_a_file(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text('prompt: "Q: {{QUERY}}\\nA: "\nend: "{{EOS}}"\nseparator: "\\n"\nsystem_prefix: "{{SYSTEM}}\\n"\n')
    text, labels = trained(chatml_tokenizer(), {"messages": CHAT}, template=str(path))
    assert text == "Be brief.\nQ: Two?\nA: 2<|endoftext|>\nQ: Three?\nA: 3<|endoftext|>"
    assert labels == "2<|endoftext|>3<|endoftext|>"


def test_a_jinja_file_replaces_the_tokenizers_template(tmp_path):
    path = tmp_path / "t.jinja"
    path.write_text(SMOL.replace("test assistant", "other assistant"))
    text, labels = trained(chatml_tokenizer(), {"messages": NO_SYSTEM}, template=str(path))
    assert "You are a other assistant" in text
    assert labels == "2<|im_end|>3<|im_end|>"


@pytest.mark.parametrize(
    ("row", "settings", "reason"),
    [
        ({"messages": CHAT}, {"use_chat_template": False}, "the template does not support a system prompt"),
        ({"messages": NO_SYSTEM}, {"use_chat_template": False}, "the template does not support a second round"),
        (
            {"messages": ONE_ROUND, "tools": [{"name": "a"}]},
            {"template": "chatml"},
            "the template does not support tools",
        ),
    ],
)
def test_what_has_no_place_is_rejected(row, settings, reason):
    assert encode(chatml_tokenizer(), row, **settings).reason == reason


@pytest.mark.parametrize(
    ("template", "chat_template", "message"),
    [
        (None, None, "this tokenizer has no chat template; set template to one of alpaca, chatml"),
        ("missing.yaml", SMOL, "this template file cannot be used"),
        (None, "{{ raise_exception('never') }}", "cannot render a question and an answer: never"),
    ],
)
def test_a_template_that_does_not_exist_says_what_to_do(template, chat_template, message):
    with pytest.raises(InvalidInput, match=message):
        choose_template(chatml_tokenizer(chat_template), template=template, use_chat_template=True)


def test_a_file_with_unknown_pieces_is_refused(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text("promt: x\nend: 3\n")
    with pytest.raises(InvalidInput, match="not a field of text: end, promt"):
        choose_template(chatml_tokenizer(), template=str(path), use_chat_template=True)


def test_system_precedence_row_then_argument_then_template():
    tokenizer = chatml_tokenizer()
    assert "Be brief." in trained(tokenizer, {"messages": CHAT}, system="Given.")[0]
    assert "Given." in trained(tokenizer, {"messages": NO_SYSTEM}, system="Given.")[0]
    assert "You are a test assistant" in trained(tokenizer, {"messages": NO_SYSTEM})[0]


def with_loss(*flags):
    answers = iter(flags)
    return [turn if turn["role"] != "assistant" else {**turn, "loss": next(answers)} for turn in NO_SYSTEM]


@pytest.mark.parametrize(
    ("strategy", "messages", "expected"),
    [
        ("default", NO_SYSTEM, "2<|im_end|>3<|im_end|>"),
        ("last_round", NO_SYSTEM, "3<|im_end|>"),
        ("default", with_loss(False, None), "3<|im_end|>"),
        ("last_round", with_loss(True, None), "2<|im_end|>3<|im_end|>"),
        ("last_round", with_loss(True, False), "2<|im_end|>"),
    ],
)
def test_which_turns_are_trained(strategy, messages, expected):
    assert trained(chatml_tokenizer(), {"messages": messages}, loss_scale=strategy)[1] == expected


def test_all_trains_everything_but_the_first_token_and_what_is_excluded():
    text, labels = trained(chatml_tokenizer(), {"messages": NO_SYSTEM}, loss_scale="all")
    assert labels == text.removeprefix("<|im_start|>")
    text, labels = trained(chatml_tokenizer(), {"messages": with_loss(False, None)}, loss_scale="all")
    assert labels == text.removeprefix("<|im_start|>").replace("2<|im_end|>", "")


def test_nothing_to_train_is_a_reason():
    assert encode(chatml_tokenizer(), {"messages": with_loss(False, False)}).reason == "no token to train on"


def test_truncation():
    tokenizer = chatml_tokenizer()
    row = {"messages": NO_SYSTEM}
    whole = encode(tokenizer, row)
    ids, weights = whole.input_ids[0], whole.weights[0]
    cut = len(ids) - 2
    deleted = encode(tokenizer, row, max_length=cut)
    assert (deleted.reason, deleted.detail) == (TOO_LONG, f"{len(ids)} > {cut} tokens")
    right = encode(tokenizer, row, max_length=cut, truncation_strategy="right")
    assert right.input_ids[0].tolist() == ids[:cut].tolist()
    assert right.is_truncated
    left = encode(tokenizer, row, max_length=cut, truncation_strategy="left")
    assert left.input_ids[0].tolist() == ids[2:].tolist()
    assert left.weights[0].tolist() == weights[2:].tolist()
    assert encode(tokenizer, row, max_length=len(ids)).is_truncated is False
    assert encode(tokenizer, row, max_length=3, truncation_strategy="right").reason == (
        "no trained token is left after truncation"
    )


def test_after_truncation_from_the_left_the_first_token_is_not_trained():
    tokenizer = chatml_tokenizer()
    result = encode(tokenizer, {"messages": NO_SYSTEM}, max_length=2, truncation_strategy="left", loss_scale="all")
    assert result.weights[0].tolist() == [0, 1]


def test_both_sequences_of_a_pair_are_encoded():
    tokenizer = chatml_tokenizer()
    settings = {"recognition": Recognition(needs_rejected=True), "loss_scale": "last_round"}
    result = encode(tokenizer, {"query": "2+2?", "response": "4", "rejected_response": "5!"}, **settings)
    texts = [tokenizer.decode(ids[weights > 0]) for ids, weights in zip(result.input_ids, result.weights, strict=True)]
    assert texts == ["4<|im_end|>", "5!<|im_end|>"]


def test_half_a_character_is_a_reason():
    assert (
        encode(chatml_tokenizer(), b'{"query": "?", "response": "\\ud83d"}').reason == "the text holds half a character"
    )


def test_a_rejection_says_where_the_row_is():
    assert str(encode(chatml_tokenizer(), b"{").location) == "data.jsonl:7"


def test_the_built_in_templates_are_those_that_the_rule_knows():
    assert sorted(BUILT_IN) == sorted(BUILT_IN_TEMPLATES)


def test_neighbors_of_one_role_are_joined_by_a_blank_line_or_refused():
    template = DeclaredTemplate(BUILT_IN["chatml"])
    asked, again = Message(role="user", content="a"), Message(role="user", content="b")
    said, more = Message(role="assistant", content="c"), Message(role="assistant", content="d")
    rendering = template.render([asked, again, said, more])
    assert "<|im_start|>user\na\n\nb<|im_end|>" in rendering.text
    assert [turn.message for turn in rendering.turns] == [3]
    assert rendering.text.endswith("<|im_start|>assistant\nc\n\nd<|im_end|>")
    with pytest.raises(RowError, match="consecutive messages of one role"):
        template.render([asked, replace(said, loss=False), more])
    with pytest.raises(RowError, match="an answer without a question"):
        template.render([said, asked, more])
