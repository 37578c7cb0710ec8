"""Whether a tokenizer fits its model, from files written by hand."""

import json

import pytest

from megatron_trainjob.tokenizer_folder import problems

VOCABULARY = {"a": 0, "b": 1, "c": 2}
ADDED = [{"id": 3, "content": "<end>", "special": True}]


@pytest.fixture
def folder(tmp_path):
    """folder(**files): a model folder of 4 rows with these files; a mapping is written as JSON, None leaves one out."""

    def write(**files):
        tokenizer = {"model": {"type": "BPE", "vocab": VOCABULARY}, "added_tokens": ADDED}
        given = {"config": {"vocab_size": 4}, "tokenizer": tokenizer, "tokenizer_config": {}, **files}
        for name, content in given.items():
            path = tmp_path / name.replace("__", ".")
            path = path if path.suffix else path.with_suffix(".json")
            if content is not None:
                path.write_text(content if isinstance(content, str) else json.dumps(content))
        return tmp_path

    return write


def test_a_tokenizer_that_fits_has_no_problem(folder):
    assert problems(folder()) == []
    assert problems(folder(tokenizer_config={"pad_token": "<end>", "eos_token": {"content": "<end>"}})) == []


UNIGRAM = {"model": {"type": "Unigram", "vocab": [["a", -1.0], ["b", -1.0], ["c", -2.0], ["d", -3.0], ["e", -3.0]]}}
WRONG = {
    "more ids than rows": (
        {"config": {"vocab_size": 3}},
        "token '<end>' has id 3, but the model's embedding has 3 rows",
    ),
    "text part of a larger model": ({"config": {"text_config": {"vocab_size": 3}}}, "has 3 rows"),
    "unigram": ({"tokenizer": UNIGRAM}, "token 'e' has id 4"),
    "a padding token that is added": ({"tokenizer_config": {"pad_token": "<pad>"}}, "token '<pad>' has id 4"),
    "a token of the settings": (
        {"tokenizer_config": {"added_tokens_decoder": {"9": {"content": "<nine>"}}}},
        "token '<nine>' has id 9",
    ),
    "an additional token": ({"tokenizer_config": {"additional_special_tokens": ["<tool>"]}}, "token '<tool>' has id 4"),
    "a padding id": ({"config": {"vocab_size": 4, "pad_token_id": 4}}, "pad_token_id 4, beyond the embedding's 4 rows"),
    "no tokenizer": ({"tokenizer": None}, "has no tokenizer: tokenizer.json is missing"),
    "half of a vocabulary": ({"tokenizer": None, "vocab": VOCABULARY}, "has no tokenizer"),
    "an empty one": ({"tokenizer": {"model": {"type": "BPE", "vocab": {}}}}, "has no vocabulary"),
    "broken": ({"tokenizer": "{"}, "tokenizer.json cannot be read"),
}


@pytest.mark.parametrize(("files", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_does_not_fit_is_named(folder, files, message):
    (problem,) = problems(folder(**files))
    assert message in problem


@pytest.mark.parametrize("files", [{"merges__txt": "a b", "vocab": VOCABULARY}, {"tokenizer__model": "x"}])
def test_other_files_make_a_tokenizer_too(folder, files):
    assert problems(folder(tokenizer=None, **files)) == []


def test_new_special_tokens_grow_the_model(folder):
    assert problems(folder(config={"vocab_size": 3}), grows=True) == []
