"""Tokenizes texts and maps characters to tokens. Special tokens come only from the text itself."""

from __future__ import annotations

import copy
import logging
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from itertools import accumulate, chain
from typing import Protocol

from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from megatron_trainer.data.encoding.words import Words, words_of

logger = logging.getLogger(__name__)


class Tokens(Protocol):
    """The tokens of one text."""

    @property
    def ids(self) -> list[int]:
        """Token ids."""
        ...

    def range(self, start: int, end: int) -> tuple[int, int]:
        """The tokens [first, last) that overlap the characters [start, end)."""
        ...


class Tokenization(Protocol):
    """Tokenizes texts, with the ids that `tokenizer(text, add_special_tokens=False)` gives."""

    def batch(self, texts: list[str]) -> list[Tokens]:
        """The tokens of each text."""
        ...


def tokenization(tokenizer: PreTrainedTokenizerBase) -> Tokenization:
    """The fastest way to tokenize with this tokenizer."""
    return _FastTokenization(tokenizer) if tokenizer.is_fast else _SlowTokenization(tokenizer)


class _FastTokenization:
    """Uses the `tokenizers` library, which has each token's offsets, and a cache of tokenized words."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._backend = copy.deepcopy(tokenizer.backend_tokenizer)
        self._backend.no_truncation()
        self._backend.no_padding()
        self._words = words_of(self._backend)
        self._is_checked = False

    def batch(self, texts: list[str]) -> list[Tokens]:
        if self._words is None:
            return self._encode(texts)
        if not self._is_checked:
            return self._first_batch(texts)
        found = [_word_tokens(self._words, text, self._encode) for text in texts]
        others = iter(self._encode([text for text, tokens in zip(texts, found, strict=True) if tokens is None]))
        return [next(others) if tokens is None else tokens for tokens in found]

    def _encode(self, texts: list[str]) -> list[Tokens]:
        return [_FastTokens(encoding) for encoding in self._backend.encode_batch(texts, add_special_tokens=False)]

    def _first_batch(self, texts: list[str]) -> list[Tokens]:
        """Tokenizes both ways, to verify that the word cache is right for this tokenizer."""
        assert self._words is not None
        tokens = self._encode(texts)
        for text, right in zip(texts, tokens, strict=True):
            remembered = _word_tokens(self._words, text, self._encode)
            if remembered is not None and remembered.ids != right.ids:
                logger.warning("this tokenizer splits words in its own way; tokenizing without the word cache")
                self._words = None
                break
        self._is_checked = bool(texts)
        return tokens


def _word_tokens(words: Words, text: str, encode: Callable[[list[str]], list[Tokens]]) -> _WordTokens | None:
    found = words.tokenize(text)
    return None if found is None else _WordTokens(text, *found, encode)


class _WordTokens:
    """Tokens of words; the offsets of a word's tokens are looked up only when an edge is inside the word."""

    def __init__(
        self, text: str, words: list[str], ids: list[tuple[int, ...]], encode: Callable[[list[str]], list[Tokens]]
    ) -> None:
        self.ids = list(chain.from_iterable(ids))
        self._text = text
        self._encode = encode
        self._ends = list(accumulate(map(len, words)))
        self._counts = list(accumulate(map(len, ids)))

    def range(self, start: int, end: int) -> tuple[int, int]:
        first, last = self._edge(start), self._edge(end)
        if first is None or last is None:
            return self._encode([self._text])[0].range(start, end)
        return first, last

    def _edge(self, character: int) -> int | None:
        """Number of tokens before the character, None if it is inside a word."""
        if character == 0:
            return 0
        word = bisect_left(self._ends, character)
        return self._counts[word] if word < len(self._ends) and self._ends[word] == character else None


class _FastTokens:
    def __init__(self, encoding: Encoding) -> None:
        self.ids: list[int] = encoding.ids
        self._encoding = encoding

    def range(self, start: int, end: int) -> tuple[int, int]:
        # Bisection with single look-ups: fetching all offsets would cost as much as tokenizing. White space at the edge
        # of a token may be missing from its offsets, so only the ends of tokens are compared.
        tokens = range(len(self.ids))
        first = bisect_right(tokens, start, key=lambda token: self._characters(token)[1])
        last = bisect_left(tokens, end, lo=first, key=lambda token: self._characters(token)[0])
        return first, last

    def _characters(self, token: int) -> tuple[int, int]:
        characters = self._encoding.token_to_chars(token)
        assert characters is not None  # only tokens that a tokenizer adds have no offsets, and none are added
        return characters


class _SlowTokenization:
    """Uses a tokenizer written in Python, which has no offsets."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def batch(self, texts: list[str]) -> list[Tokens]:
        return [_SlowTokens(self._tokenizer, text) for text in texts]


class _SlowTokens:
    """Finds the token at a character by tokenizing the text up to it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str) -> None:
        self._tokenizer = tokenizer
        self._text = text
        self.ids: list[int] = self._encode(text)

    def range(self, start: int, end: int) -> tuple[int, int]:
        first, _ = self._before(start)
        last, is_cut = self._before(end)
        return first, last + is_cut

    def _before(self, character: int) -> tuple[int, bool]:
        """Number of tokens that end before the character, and whether a token spans it."""
        ids = self._encode(self._text[:character])
        same = next((n for n, (a, b) in enumerate(zip(ids, self.ids, strict=False)) if a != b), len(ids))
        return same, same < len(ids)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids
