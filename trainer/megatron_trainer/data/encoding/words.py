"""Tokenizes with a word cache: the ids of byte-level BPE, several times faster than computing them again.

Byte-level BPE first splits a text into words by a regular expression, and then tokenizes each word separately. Words
repeat, so the ids of each word are cached, and the tokenizer computes only those of new words. This is done only if it
certainly gives the same ids: for known split patterns, and for characters whose Unicode class the two
regular-expression engines agree on. Anything else returns None and has to be tokenized by the tokenizer itself.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from typing import Any

import regex
from tokenizers import Tokenizer, pre_tokenizers

MOST_WORDS = 500_000
_CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
_GPT2 = _CONTRACTIONS + r"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# GPT-2's, for texts that are first split before and after each digit: white space before a digit ends like a text.
_GPT2_AFTER_DIGITS = _CONTRACTIONS + r"| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
# Characters of scripts and symbols that have long been in Unicode; others may be letters to one engine only. The long s
# is left out, because it equals s if case is ignored.
_AGREED = (
    r"\t\n\r -~\u00a0-\u017e\u0180-\u024f\u0300-\u036f\u0370-\u052f\u05d0-\u05ea\u0620-\u064a\u0660-\u0669"
    r"\u0904-\u0939\u0e01-\u0e3a\u2010-\u2029\u2030-\u205e\u20a0-\u20bf\u2190-\u23fa\u2460-\u27bf\u3000-\u303f"
    r"\u3041-\u3096\u30a0-\u30ff\u3400-\u4db5\u4e00-\u9fef\uac00-\ud7a3\ufe0f\uff01-\uff9f\U0001f300-\U0001faff"
)
_DOUBTFUL = regex.compile(f"[^{_AGREED}]")


class Words(dict[str, tuple[int, ...]]):
    """Cached words of one tokenizer and their ids."""

    def __init__(self, tokenizer: Tokenizer, cut: regex.Pattern[str]) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._cut = cut
        self._bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._added = {token.content: (number,) for number, token in tokenizer.get_added_tokens_decoder().items()}
        longest_first = sorted(map(regex.escape, self._added), key=len, reverse=True)
        self._around_added = regex.compile(f"({'|'.join(longest_first)})") if longest_first else None
        self._needs_composed = tokenizer.normalizer is not None

    def __reduce__(self) -> tuple[Callable[..., Words | None], tuple[Tokenizer]]:
        return words_of, (self._tokenizer,)  # without the cache

    def __missing__(self, word: str) -> tuple[int, ...]:
        [(mapped, _)] = self._bytes.pre_tokenize_str(word)
        ids = tuple(token.id for token in self._tokenizer.model.tokenize(mapped))
        if len(self) < MOST_WORDS:
            self[word] = ids
        return ids

    def tokenize(self, text: str) -> tuple[list[str], list[tuple[int, ...]]] | None:
        """The words and added tokens of the text and the ids of each, or None if they are not certain."""
        if not self._is_certain(text):
            return None
        parts = [text] if self._around_added is None else self._around_added.split(text)
        pieces: list[str] = []
        ids: list[tuple[int, ...]] = []
        for place, part in enumerate(parts):
            if place % 2:
                pieces.append(part)
                ids.append(self._added[part])
            elif part:
                found = self._cut.findall(part)
                pieces += found
                ids += map(self.__getitem__, found)
        return pieces, ids

    def _is_certain(self, text: str) -> bool:
        if _DOUBTFUL.search(text):
            return False
        return not self._needs_composed or unicodedata.is_normalized("NFC", text)


def words_of(tokenizer: Tokenizer) -> Words | None:
    """The word cache of a tokenizer, or None if it does not work in a known way."""
    facts: dict[str, Any] = json.loads(tokenizer.to_str())
    model, normalizer = facts["model"], facts["normalizer"]
    is_plain_model = model["type"] == "BPE" and not any(
        model.get(name) for name in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")
    )
    cut = _cut(facts["pre_tokenizer"])
    if not is_plain_model or cut is None or normalizer not in (None, {"type": "NFC"}):
        return None
    if any(token[flag] for token in facts["added_tokens"] for flag in ("single_word", "lstrip", "rstrip")):
        return None
    return Words(tokenizer, regex.compile(cut))


def _cut(steps: dict[str, Any] | None) -> str | None:
    """The regular expression by which the tokenizer splits a text into words, if known."""
    match steps:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            return _GPT2
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
            ],
        }:
            return _GPT2_AFTER_DIGITS
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        } if pattern in _KNOWN_PATTERNS:
            return str(pattern)
        case _:
            return None


_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_KNOWN_PATTERNS = frozenset({_LLAMA3, _QWEN2})
