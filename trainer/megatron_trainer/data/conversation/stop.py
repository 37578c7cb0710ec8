"""The texts at which a model stops: from the template, generation_config.json, or stop_words."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from megatron_trainjob import input_file
from megatron_trainjob.tokenizer_folder import GENERATION_FILE


def declared_stops(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The end-of-sequence token, and the tokens that the model's generation_config.json names."""
    ids = [*_generation_ids(Path(tokenizer.name_or_path or "")), tokenizer.eos_token_id]
    tokens = [str(tokenizer.convert_ids_to_tokens(number)) for number in ids if isinstance(number, int)]
    return tuple(dict.fromkeys(token for token in tokens if token and token != "None"))


def _generation_ids(directory: Path) -> list[object]:
    path = directory / GENERATION_FILE
    try:
        stated = input_file.read_json(path).get("eos_token_id")
    except (OSError, ValueError, AttributeError):
        return []
    return stated if isinstance(stated, list) else [stated]


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Every added token, special or not, that is matched before a text is split into words."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    return (added | set(tokenizer.all_special_tokens)) - {""}


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """A pattern that matches each of the texts, the longest first."""
    longest_first = sorted(texts, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


@dataclass(frozen=True)
class Stops:
    """Finds texts at which a model can stop. known: named by the model or the user. tokens: any added token."""

    known: re.Pattern[str]
    tokens: re.Pattern[str]

    def after(self, text: str, start: int, limit: int) -> re.Match[str] | None:
        """The first stop in text[start:limit] with no words before it: a known one, or else any added token."""
        found = self.known.search(text, start, limit)
        if found is not None and not _has_words(text[start : found.start()]):
            return found
        token = self.tokens.search(text, start, limit)
        return token if token is not None and not _has_words(text[start : token.start()]) else None


def _has_words(text: str) -> bool:
    return any(character.isalnum() for character in text)
