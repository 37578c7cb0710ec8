"""The rendered text is transformers' own, and the assistant's turns are exactly where a human sees them."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from megatron_trainer.data.conversation.chat_template import ChatTemplate
from megatron_trainer.data.conversation.messages import parse_messages
from megatron_trainer.data.encoding.encode import Encoder, EncodeSettings
from megatron_trainer.data.row import Record
from megatron_trainer.data.values import RowError
from tests.support.models.text_models import INST, LLAMA3, SENTENCES, SMOL, THINKING, chatml_tokenizer, llama_tokenizer
from tests.support.ranks import real_model

USER = {"role": "user", "content": "Add 12 and 30"}
SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}


def assistant(content="", **extra):
    return {"role": "assistant", "content": content, **extra}


def trained_texts(tokenizer, turns, tools=None):
    template = ChatTemplate(tokenizer)
    rendering = template.render(parse_messages(turns), tools)
    assert rendering.text == tokenizer.apply_chat_template(turns, tools=tools, tokenize=False)
    return [rendering.text[turn.start : turn.end] for turn in rendering.turns]


CASES = {
    "one round": ("smol", [USER, assistant("It is 42.")], ["It is 42.<|im_end|>"]),
    "system and two rounds": (
        "smol",
        [SYSTEM, USER, assistant("42"), USER, assistant("42 again")],
        ["42<|im_end|>", "42 again<|im_end|>"],
    ),
    "the answer quotes the question and the template": (
        "smol",
        [USER, assistant("<|im_start|>assistant\nAdd 12 and 30"), USER, assistant("<|im_end|>")],
        ["<|im_start|>assistant\nAdd 12 and 30<|im_end|>", "<|im_end|><|im_end|>"],
    ),
    "the same answer twice": (
        "smol",
        [USER, assistant("yes"), USER, assistant("yes")],
        ["yes<|im_end|>", "yes<|im_end|>"],
    ),
    "an empty answer in the middle": (
        "smol",
        [USER, assistant(""), USER, assistant("so?")],
        ["<|im_end|>", "so?<|im_end|>"],
    ),
    "characters of several tokens at both ends": ("smol", [USER, assistant("🙂 yes 🙃")], ["🙂 yes 🙃<|im_end|>"]),
    "white space around the answer": ("smol", [USER, assistant("\n 42 \n")], ["\n 42 \n<|im_end|>"]),
    "thinking: no thought becomes an empty one": (
        "thinking",
        [USER, assistant("42")],
        ["<think>\n\n</think>\n\n42<|im_end|>"],
    ),
    "thinking: reasoning in its own field": (
        "thinking",
        [USER, assistant("2", reasoning_content="well")],
        ["<think>\nwell\n</think>\n\n2<|im_end|>"],
    ),
    "thinking: tool call without words": (
        "thinking",
        [USER, assistant(tool_calls=[CALL]), {"role": "tool", "content": "sunny"}, assistant("Sunny.")],
        [
            '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>',
            "<think>\n\n</think>\n\nSunny.<|im_end|>",
        ],
    ),
    "thinking: words, two tool calls, two results": (
        "thinking",
        [
            USER,
            assistant("Let me look.", tool_calls=[CALL, CALL]),
            {"role": "tool", "content": "sunny"},
            {"role": "tool", "content": "rain"},
            assistant("<think>\nok\n</think>\n\nMixed."),
        ],
        [
            "Let me look."
            + '\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>' * 2
            + "<|im_end|>",
            "<think>\nok\n</think>\n\nMixed.<|im_end|>",
        ],
    ),
    "llama3: trimmed": ("llama3", [SYSTEM, USER, assistant(" 42 ")], ["42<|eot_id|>"]),
    "llama3: tool call ends with another token": (
        "llama3",
        [USER, assistant(tool_calls=[CALL]), {"role": "tool", "content": "sunny"}, assistant("Sunny.")],
        ['{"name": "get_weather", "parameters": {"city": "Paris"}}<|eom_id|>', "Sunny.<|eot_id|>"],
    ),
    "no header: the turn starts at its first word": (
        "inst",
        [USER, assistant("42"), USER, assistant("43")],
        ["42<|eot_id|>", "43<|eot_id|>"],
    ),
}

TOKENIZERS = {
    "smol": lambda: chatml_tokenizer(SMOL),
    "thinking": lambda: chatml_tokenizer(THINKING),
    "llama3": lambda: llama_tokenizer(LLAMA3),
    "inst": lambda: llama_tokenizer(INST),
}


@pytest.mark.parametrize(("model", "turns", "expected"), CASES.values(), ids=CASES.keys())
def test_the_trained_text_is_each_answer_with_its_end_of_turn(model, turns, expected):
    assert trained_texts(TOKENIZERS[model](), turns) == expected


@pytest.mark.parametrize(("model", "turns", "expected"), CASES.values(), ids=CASES.keys())
def test_ids_equal_transformers_and_labels_decode_to_the_trained_text(model, turns, expected):
    tokenizer = TOKENIZERS[model]()
    encoder = Encoder(tokenizer, EncodeSettings())
    [encoded] = encoder.encode([Record(0, "x", 1, {"messages": turns})])
    ids = encoded.input_ids[0]
    assert ids.tolist() == tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    assert tokenizer.decode(ids[encoded.weights[0] > 0]).strip() == "".join(expected).strip()


def test_tools_are_rendered_by_the_template():
    tokenizer = chatml_tokenizer(THINKING)
    turns = [SYSTEM, USER, assistant(tool_calls=[CALL])]
    assert trained_texts(tokenizer, turns, [TOOL])[0].startswith("<think>\n\n</think>\n\n<tool_call>")


def test_a_template_that_refuses_a_role_says_so():
    with pytest.raises(RowError, match="only user and assistant"):
        ChatTemplate(llama_tokenizer(INST)).render(parse_messages([SYSTEM, USER, assistant("42")]))


def test_a_template_that_drops_an_answer_is_refused():
    lossy = "{% for m in messages %}{% if not loop.last or m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    with pytest.raises(RowError, match="leaves out an assistant turn"):
        ChatTemplate(chatml_tokenizer(lossy)).render(parse_messages([USER, assistant("42")]))


def test_a_text_that_starts_with_the_assistant_gets_an_empty_user_turn():
    rendering = ChatTemplate(chatml_tokenizer(SMOL)).render(parse_messages([assistant("Once.")]))
    assert "<|im_start|>user\n<|im_end|>" in rendering.text
    assert rendering.text[rendering.turns[0].start : rendering.turns[0].end] == "Once.<|im_end|>"
    assert rendering.turns[0].message == 0


def metaspace_tokenizer():
    """In the style of Llama 2: spaces are marks, one is put before the text, and unknown bytes are tokens."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    spaces = decoders.Replace("▁", " ")
    tokenizer.decoder = decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=600, special_tokens=special))
    template = INST.replace("eos_token", "'</s>'").replace("bos_token", "'<s>'")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = template
    return fast


def python_tokenizer():
    """One without the fast library: a token for each byte."""
    tokenizer = ByT5Tokenizer()
    tokenizer.chat_template = INST.replace("eos_token", "'</s>'").replace("{{ bos_token }}", "")
    return tokenizer


@pytest.mark.parametrize("make", [metaspace_tokenizer, python_tokenizer])
def test_other_kinds_of_tokenizers_mark_the_same_text(make):
    tokenizer = make()
    turns = [USER, assistant("Think first"), USER, assistant("Ça va 🙂")]
    [encoded] = Encoder(tokenizer, EncodeSettings()).encode([Record(0, "x", 1, {"messages": turns})])
    ids, weights = encoded.input_ids[0], encoded.weights[0]
    assert ids.tolist() == tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    starts = np.flatnonzero(np.diff(np.concatenate([[0], weights])) > 0)
    ends = np.flatnonzero(np.diff(np.concatenate([weights, [0]])) < 0) + 1
    runs = [tokenizer.decode(ids[start:end]).strip() for start, end in zip(starts, ends, strict=True)]
    assert runs == ["Think first</s>", "Ça va 🙂</s>"]


@pytest.mark.parametrize("length", [1, 2, 7])
def test_the_real_template_and_tokenizer_of_smollm2_give_transformers_ids_and_the_answers(length):
    directory = real_model.directory()
    if directory is None:
        pytest.skip("run examples/quickstart/make_model.py to get the model (93 MB)")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    answers = [f"Number {n}: `def f(x): return {n}`\n\n中文 🙂 " for n in range(length)]
    turns = [turn for answer in answers for turn in (USER, assistant(answer))]
    for given in (turns, [SYSTEM, *turns]):
        [encoded] = Encoder(tokenizer, EncodeSettings()).encode([Record(0, "x", 1, {"messages": given})])
        ids = encoded.input_ids[0]
        assert ids.tolist() == tokenizer.apply_chat_template(given, tokenize=True, return_dict=False)
        assert tokenizer.decode(ids[encoded.weights[0] > 0]) == "".join(f"{answer}<|im_end|>" for answer in answers)
