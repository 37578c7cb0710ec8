"""What people see of names, rows and values of others: no character that acts, no secret."""

import json
import logging

import pytest

from megatron_trainjob import shown
from megatron_trainjob.args.parse import parse
from megatron_trainjob.args.tree import ARGUMENTS
from megatron_trainjob.termination import TerminationRecord
from megatron_trainjob.violation import Violation

ACTING = ["\x1b[2J", "\x9b1m", "\x07", "\u202e", "\u2066", "\r", "\ud800", "\x00", "\u2028", "\x7f", "\u200b"]


@pytest.mark.parametrize("acting", ACTING, ids=ascii)
def test_characters_that_act_are_written_out_wherever_text_leaves(acting):
    name = f"a{acting}b.jsonl"
    texts = [
        shown.clean(name),
        str(Violation(path=f"dataset.{name}", value=name, message=f"{name} is missing")),
        json.loads(TerminationRecord(exit_code=1, reason="ERROR", rank=0, iteration=None, message=name).to_json())[
            "message"
        ],
        formatted("cannot read %s", name),
    ]
    for text in texts:
        assert acting not in text
        assert acting.encode("unicode_escape").decode()[:3] in text


def test_ordinary_text_stays_as_it_is():
    for text in ("zwölf 数据 🙂 👩‍🔬.jsonl", "a b", "[x]"):
        assert shown.message(text) == shown.clean(text) == text
    assert shown.message("a\n\tb") == "a\n\tb"
    assert shown.clean("a\nb") == "a\\nb"


def test_a_line_in_a_name_does_not_pass_for_a_log_line():
    lines = formatted("cannot read %s", "a\n2026-01-01 INFO finished").split("\n")
    assert lines[1].startswith("    2026")


def formatted(text, *values):
    return shown.LogFormatter("%(message)s").format(logging.LogRecord("a", 20, "b", 1, text, values, None))


@pytest.mark.parametrize("name", ["hub_token", "hub_tokn", "hubtoken", "hf_tokens", "HF-TOKEN", "api_key", "passwort"])
def test_the_value_of_a_secret_argument_is_hidden_however_it_is_spelled(name):
    (found,) = parse({name: "abc-secret"}, task="sft").violations[:1]
    assert "abc-secret" not in str(found)
    assert "(hidden)" in str(found)


def test_no_other_argument_is_taken_for_a_secret():
    hidden = {name for name in ARGUMENTS if shown.is_secret(f"spec.args.{name}")}
    assert hidden == {name for name, argument in ARGUMENTS.items() if argument.secret}


@pytest.mark.parametrize("path", ["spec.env[0].value", "spec.env[12].valeu", "spec.env[0]", "spec.env"])
def test_values_of_the_environment_are_hidden(path):
    assert shown.value(path, "abc") == "'(hidden)'"
    assert shown.value("spec.env[0].name", "abc") == "'abc'"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("s3://me:pa55@host/x", "s3://me:(hidden)@host/x"),
        ("https://:pa55@host", "https://:(hidden)@host"),
        ("got hf_abcdefghijkl", "got hf_(hidden)"),
        ("http://host:80/x@y", "http://host:80/x@y"),
        ("hf_model", "hf_model"),
    ],
)
def test_passwords_and_tokens_are_hidden_in_any_text(text, seen):
    assert shown.without_secrets(text) == seen
    assert shown.record({"a": [text]}) == {"a": [seen]}
    assert seen in str(Violation(path="a", value=text, message=text))
