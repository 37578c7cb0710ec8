"""Checks that a model's folder has a tokenizer that fits the model, from its small files, without loading it.

The trainer checks the loaded tokenizer again; this is what can be checked before anything starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_trainjob import input_file

TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, CONFIG_FILE = "tokenizer.json", "tokenizer_config.json", "config.json"
VOCABULARIES = (
    (TOKENIZER_FILE,),
    ("tekken.json",),
    ("*.model",),
    ("*.tiktoken",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
)
"""Alternative sets of tokenizer files: all files of one entry are needed."""
GENERATION_FILE = "generation_config.json"
_BESIDE = ("special_tokens_map.json", "added_tokens.json")
"""Further files that transformers reads into a tokenizer if present."""
_DAMAGE = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError)
_COPY = "copy the tokenizer's files from where the model was published"


def problems(directory: Path, *, grows: bool = False) -> list[str]:
    """Problems of the tokenizer in `directory`, with the remedy; empty if none can be detected.

    grows: new_special_tokens are given, so that the embedding is extended to the tokenizer.
    """
    if not any(all(any(directory.glob(name)) for name in names) for names in VOCABULARIES):
        return [f"has no tokenizer: {TOKENIZER_FILE} is missing; {_COPY}"]
    try:
        settings, stored = read_json(directory / TOKENIZER_CONFIG_FILE), read_json(directory / TOKENIZER_FILE)
        config = read_json(directory / CONFIG_FILE)
        ids = _ids(stored)
        generation = read_json(directory / GENERATION_FILE)
        for name in _BESIDE:
            read_json(directory / name)
    except ValueError as error:
        return [f"{error}; download it again"]
    try:
        ids = _with_named(ids, settings)
    except _DAMAGE as error:
        return [
            f"{TOKENIZER_CONFIG_FILE} has content that is invalid in a tokenizer ({_shown(error)}); download it again"
        ]
    rows = num_rows(config)
    stops = list(_stops(generation))
    if rows is None or grows:
        return stops
    return [*stops, *_too_many(ids, rows), *_padding(config, rows)]


def num_rows(config: Mapping[str, Any]) -> int | None:
    """Rows of the embedding according to config.json."""
    text = config.get("text_config")
    rows = config.get("vocab_size") or (text.get("vocab_size") if isinstance(text, Mapping) else None)
    return rows if isinstance(rows, int) else None


def beyond(token: str, number: int, rows: int) -> str:
    """The message about a token without a row."""
    return (
        f"the tokenizer's token {token!r} has id {number}, but the model's embedding has {rows} rows (vocab_size); use "
        "the tokenizer that the model was published with, or name new tokens in new_special_tokens, which grows both"
    )


def _too_many(ids: Mapping[str, int], rows: int) -> Iterator[str]:
    token = max(ids, key=ids.__getitem__, default=None)
    if token is not None and ids[token] >= rows:
        yield beyond(token, ids[token], rows)


def _stops(generation: Mapping[str, Any]) -> Iterator[str]:
    stated = generation.get("eos_token_id")
    numbers = stated if isinstance(stated, list) else [] if stated is None else [stated]
    if not all(type(number) is int for number in numbers):
        yield f"{GENERATION_FILE} says eos_token_id {stated!r}; use the id of a token, or a list of ids"


def _padding(config: Mapping[str, Any], rows: int) -> Iterator[str]:
    number = config.get("pad_token_id")
    if isinstance(number, int) and number >= rows:
        yield f"{CONFIG_FILE} says pad_token_id {number}, beyond the embedding's {rows} rows; use a token that it has"


def _ids(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Token -> id of a tokenizer.json; empty if there is none. Raises ValueError for invalid content."""
    try:
        vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
        if isinstance(vocabulary, list):  # of Unigram: [token, score] in the order of ids
            vocabulary = {str(entry[0]): number for number, entry in enumerate(vocabulary)}
        added = {entry["content"]: int(entry["id"]) for entry in tokenizer.get("added_tokens") or ()}
        ids: dict[str, int] = {**vocabulary, **added}
    except _DAMAGE as error:
        raise ValueError(f"{TOKENIZER_FILE} has content that is invalid in a tokenizer ({_shown(error)})") from error
    if tokenizer and not vocabulary:
        raise ValueError(f"{TOKENIZER_FILE} has no vocabulary")
    wrong = next((token for token, number in ids.items() if not isinstance(number, int) or number < 0), None)
    if wrong is not None:
        raise ValueError(f"{TOKENIZER_FILE} gives the token {wrong!r} the id {ids[wrong]!r}")
    return ids


def _shown(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _with_named(ids: Mapping[str, int], settings: Mapping[str, Any]) -> dict[str, int]:
    """The ids including the special tokens of the settings: those missing in the vocabulary are added."""
    found = dict(ids)
    for number, entry in (settings.get("added_tokens_decoder") or {}).items():
        found[_content(entry)] = int(number)
    for token in _named(settings) if ids else ():
        found.setdefault(token, max(found.values()) + 1)
    return found


def _named(settings: Mapping[str, Any]) -> Iterator[str]:
    for key, value in settings.items():
        if key.endswith("_token") and isinstance(value, str | dict):
            yield _content(value)
    for token in settings.get("additional_special_tokens") or ():
        yield _content(token)


def _content(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else str(token.get("content"))


def read_json(path: Path) -> Mapping[str, Any]:
    """A JSON object, {} if there is no such file. Raises ValueError for anything else."""
    try:
        content = input_file.read_json(path, most_bytes=input_file.MAX_TABLE_BYTES)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name} cannot be read ({error})") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path.name} is not a JSON object")
    return content
