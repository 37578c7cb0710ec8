"""Remembered words give the ids of the tokenizer itself, whatever the text; other tokenizers are left alone."""

import copy
import pickle
import random
import sys

import pytest
import regex
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from megatron_trainer.data.encoding import words
from megatron_trainer.data.encoding.tokens import tokenization
from megatron_trainer.data.encoding.words import words_of
from tests.support.models.text_models import SENTENCES, chatml_tokenizer

GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2])


def split(pattern):
    cut = pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False)
    return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


CUTS = {"gpt2": GPT2, "digits": DIGITS, "llama3": split(words._LLAMA3), "qwen2": split(words._QWEN2)}


def tokenizer_with(cut, normalizer=None):
    tokenizer = copy.deepcopy(chatml_tokenizer().backend_tokenizer)
    tokenizer.pre_tokenizer = CUTS[cut]
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return tokenizer


def remembered(tokenizer, text):
    found = words_of(tokenizer).tokenize(text)
    return None if found is None else [number for ids in found[1] for number in ids]


def agreed_characters(stride):
    pattern = regex.compile(f"[{words._AGREED}]")
    return [chr(code) for code in range(0, sys.maxunicode, stride) if pattern.match(chr(code))]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("stride", [23, pytest.param(1, marks=pytest.mark.slow)])
def test_every_agreed_character_is_cut_alike_in_every_neighborhood(cut, stride):
    tokenizer = tokenizer_with(cut)
    known = words_of(tokenizer)
    characters = agreed_characters(stride)
    assert len(characters) > 40_000 / stride
    for start in range(0, len(characters), 50):
        text = "".join(f"a{c}b {c}{c} 1{c}2 \n{c}'s{c} '{c}\r\n  {c}" for c in characters[start : start + 50])
        found = known.tokenize(text)
        assert found is not None
        assert [number for ids in found[1] for number in ids] == tokenizer.encode(text).ids


@pytest.mark.parametrize("cut", CUTS)
def test_random_texts_with_special_tokens_and_white_space(cut):
    tokenizer = tokenizer_with(cut)
    source = random.Random(1)
    known = words_of(tokenizer)
    parts = [*" \n\t\r", "  ", "\n\n", "<|im_start|>", "<|im_end|>", "'s", "'LL", "123456", "x=1;", "ß", *SENTENCES]
    for _ in range(300):
        text = "".join(source.choice(parts) for _ in range(source.randrange(12)))
        found = known.tokenize(text)
        assert [number for ids in found[1] for number in ids] == tokenizer.encode(text).ids


def test_doubtful_characters_are_left_to_the_tokenizer():
    known = words_of(tokenizer_with("gpt2"))
    for text in ("\x00", "\x1c", "\x85", "ſ", "\u180e", "\U0001e900", "\ue0f1"):
        assert known.tokenize(f"a{text}b") is None


def test_text_that_is_not_composed_is_left_to_a_tokenizer_that_composes_it():
    known = words_of(tokenizer_with("qwen2", normalizers.NFC()))
    assert known.tokenize("C\u0327a") is None
    assert known.tokenize("\u00c7a") is not None


def test_other_tokenizers_are_not_touched():
    assert words_of(tokenizer_with("gpt2", normalizers.Lowercase())) is None
    other = tokenizer_with("gpt2")
    other.pre_tokenizer = split(r"\w+|\W+")
    assert words_of(other) is None
    other.pre_tokenizer = pre_tokenizers.Whitespace()
    assert words_of(other) is None


def test_a_batch_mixes_both_ways_and_a_copy_forgets():
    tokenizer = chatml_tokenizer()
    tokenize = tokenization(tokenizer)
    texts = ["The quick fox", "a\x00b", "", "now <|im_end|>"]
    for _ in range(2):
        found = [tokens.ids for tokens in tokenize.batch(texts)]
        assert found == [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    copied = pickle.loads(pickle.dumps(tokenize))
    assert [tokens.ids for tokens in copied.batch(texts)] == found
    assert len(pickle.loads(pickle.dumps(words_of(tokenizer.backend_tokenizer)))) == 0


def test_an_edge_inside_a_word_is_found_by_the_tokenizer():
    tokenizer = chatml_tokenizer()
    tokenize = tokenization(tokenizer)
    text = "The quick brown fox jumps"
    checked, fast = (tokenize.batch([text])[0] for _ in range(2))
    for start in range(len(text)):
        for end in range(start + 1, len(text) + 1):
            assert fast.range(start, end) == checked.range(start, end)


def test_a_tokenizer_that_behaves_unlike_its_description_is_noticed(monkeypatch, caplog):
    """The pattern of another tokenizer stands for a description that lies."""
    monkeypatch.setattr(words, "_cut", lambda _: r".")
    tokenizer = chatml_tokenizer()
    tokenize = tokenization(tokenizer)
    for _ in range(2):
        assert tokenize.batch(["The quick"])[0].ids == tokenizer.encode("The quick", add_special_tokens=False)
    assert "splits words in its own way" in caplog.text


def test_the_ids_of_a_word_are_those_of_the_model():
    tokenizer: Tokenizer = tokenizer_with("gpt2")
    assert list(words_of(tokenizer)[" quick"]) == tokenizer.encode(" quick").ids
