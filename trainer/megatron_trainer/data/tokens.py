"""Texts to token ids, and which tokens cover which characters of the text. Special tokens come from the text alone."""

from __future__ import annotations

import copy
from bisect import bisect_left, bisect_right
from typing import Protocol

from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase


class Tokens(Protocol):
    """The tokens of one text."""

    @property
    def ids(self) -> list[int]:
        """Token ids."""
        ...

    def range(self, start: int, end: int) -> tuple[int, int]:
        """The tokens [first, last) that cover any of the characters [start, end)."""
        ...


class Tokenization(Protocol):
    """Tokenises texts, with the ids that `tokenizer(text, add_special_tokens=False)` gives."""

    def batch(self, texts: list[str]) -> list[Tokens]:
        """The tokens of each text."""
        ...


def tokenization(tokenizer: PreTrainedTokenizerBase) -> Tokenization:
    """The fastest way to tokenise with this tokenizer."""
    return _FastTokenization(tokenizer) if tokenizer.is_fast else _SlowTokenization(tokenizer)


class _FastTokenization:
    """With the `tokenizers` library, which knows each token's characters."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._backend = copy.deepcopy(tokenizer.backend_tokenizer)
        self._backend.no_truncation()
        self._backend.no_padding()

    def batch(self, texts: list[str]) -> list[Tokens]:
        return [_FastTokens(encoding) for encoding in self._backend.encode_batch(texts, add_special_tokens=False)]


class _FastTokens:
    def __init__(self, encoding: Encoding) -> None:
        self.ids: list[int] = encoding.ids
        self._encoding = encoding

    def range(self, start: int, end: int) -> tuple[int, int]:
        # By bisection of single look-ups: fetching all offsets would cost as much as tokenising. White space at the
        # edge of a token may be missing from its characters, so tokens are told apart by where they end.
        tokens = range(len(self.ids))
        first = bisect_right(tokens, start, key=lambda token: self._characters(token)[1])
        last = bisect_left(tokens, end, lo=first, key=lambda token: self._characters(token)[0])
        return first, last

    def _characters(self, token: int) -> tuple[int, int]:
        characters = self._encoding.token_to_chars(token)
        assert characters is not None  # only tokens that a tokenizer adds have none, and none are added
        return characters


class _SlowTokenization:
    """With a tokenizer written in Python, which does not know characters."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def batch(self, texts: list[str]) -> list[Tokens]:
        return [_SlowTokens(self._tokenizer, text) for text in texts]


class _SlowTokens:
    """Finds the token at a character by tokenising the text up to there."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str) -> None:
        self._tokenizer = tokenizer
        self._text = text
        self.ids: list[int] = self._encode(text)

    def range(self, start: int, end: int) -> tuple[int, int]:
        first, _ = self._before(start)
        last, is_cut = self._before(end)
        return first, last + is_cut

    def _before(self, character: int) -> tuple[int, bool]:
        """Tokens that end before the character, and whether a token lies across it."""
        ids = self._encode(self._text[:character])
        same = next((n for n, (a, b) in enumerate(zip(ids, self.ids, strict=False)) if a != b), len(ids))
        return same, same < len(ids)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids
