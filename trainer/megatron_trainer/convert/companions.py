"""The files beside the weights of an exported model: config.json, tokenizer, templates, and generation settings.

Files are copied from the model's own folder, except its publisher's Python code: transformers implements every family
that is trained here, and a config.json that names missing code cannot be loaded. A tokenizer's code is copied.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from megatron_trainer.models.spec import CONFIG_FILE, ModelSpec
from megatron_trainjob.tokenizer_folder import GENERATION_FILE, TOKENIZER_CONFIG_FILE, read_json

CODE = "auto_map"
"""Key of the JSON files that names classes in Python files of the folder, such as tokenization_x.Tokenizer."""
_SPECIAL_TOKENS_FILE = "special_tokens_map.json"
_COPIED = (
    GENERATION_FILE,
    "tokenizer*",
    "tekken.json",
    _SPECIAL_TOKENS_FILE,
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "LICENSE*",
)


@dataclass(frozen=True, kw_only=True)
class Companions:
    """Files that training has changed. tokenizer: an extended one, None for the model's own. stop_words: the texts with
    which trained answers end.
    """

    tokenizer: PreTrainedTokenizerBase | None = None
    stop_words: tuple[str, ...] = ()


def write(folder: Path, spec: ModelSpec, dtype: torch.dtype, changed: Companions) -> None:
    """Writes everything but the weights. dtype: of the weights."""
    stored = spec.stored_config
    keys = [key for key in ("dtype", "torch_dtype") if key in stored] or ["torch_dtype"]
    config = {name: value for name, value in stored.items() if name != CODE}
    _write_json(folder / CONFIG_FILE, {**config, **dict.fromkeys(keys, str(dtype).removeprefix("torch."))})
    _write_tokenizer(folder, spec.directory, changed)
    if spec.head is not None:
        _name_padding(folder)
        for name, content in spec.head.files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            _write_json(folder / name, content)
    elif changed.stop_words:
        _name_stops(folder, spec.stored_config, changed)


def write_beside_adapter(folder: Path, spec: ModelSpec, changed: Companions) -> None:
    """Writes the tokenizer and generation settings if training has changed them; else the base model's apply."""
    with TemporaryDirectory() as name:
        aside = Path(name)
        _write_tokenizer(aside, spec.directory, changed)
        is_renamed = spec.head is None and bool(changed.stop_words) and _name_stops(aside, spec.stored_config, changed)
        if is_renamed or changed.tokenizer is not None:
            shutil.copytree(aside, folder, dirs_exist_ok=True)


def stops_of(folder: Path) -> tuple[str, ...]:
    """The texts with which trained answers end, from the files beside an adapter; empty if it has no tokenizer."""
    settings, generation = read_json(folder / TOKENIZER_CONFIG_FILE), read_json(folder / GENERATION_FILE)
    texts = generation.get("stop_strings") or ()
    end = settings.get("eos_token")
    token = end.get("content") if isinstance(end, Mapping) else end
    found = (*([texts] if isinstance(texts, str) else texts), *([] if texts else [token]))
    return tuple(text for text in found if isinstance(text, str) and text)


def _write_tokenizer(folder: Path, source: Path, changed: Companions) -> None:
    for pattern in _COPIED:
        for path in source.glob(pattern):
            if path.is_file():
                _copy(path, folder / path.relative_to(source))
    if changed.tokenizer is not None:
        changed.tokenizer.save_pretrained(folder)
    _bring_tokenizer_code(source, folder)


def _name_padding(folder: Path) -> None:
    """Sets the padding token in config.json: without it a classifier of transformers accepts one row at a time only."""
    config = read_json(folder / CONFIG_FILE)
    if config.get("pad_token_id") is None and (folder / TOKENIZER_CONFIG_FILE).is_file():
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        _write_json(folder / CONFIG_FILE, {**config, "pad_token_id": padding})


def _bring_tokenizer_code(source: Path, folder: Path) -> None:
    """Copies the Python files that the tokenizer's settings name; if any is missing, removes the setting."""
    settings = read_json(folder / TOKENIZER_CONFIG_FILE)
    named = settings.get(CODE)
    if not named:
        return
    classes = named.get("AutoTokenizer") if isinstance(named, Mapping) else named
    listed = [classes] if isinstance(classes, str) else classes or ()
    files = {f"{name.partition('.')[0]}.py" for name in listed if name and "--" not in name}
    if all((source / file).is_file() for file in files):
        for file in files:
            _copy(source / file, folder / file)
    else:
        _write_json(folder / TOKENIZER_CONFIG_FILE, {name: v for name, v in settings.items() if name != CODE})


def _name_stops(folder: Path, config: Mapping[str, Any], changed: Companions) -> bool:
    """Adds the ends of trained answers to the stop tokens of generation. True if that changes anything."""
    tokenizer = changed.tokenizer or AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    ids = {word: _single_id(tokenizer, word) for word in changed.stop_words}
    tokens = {word: number for word, number in ids.items() if number is not None}
    generation = dict(read_json(folder / GENERATION_FILE)) or _generation_of(config)
    earlier = generation.get("eos_token_id")
    earlier = earlier if isinstance(earlier, list) else [] if earlier is None else [earlier]
    if missing := [number for number in tokens.values() if number not in earlier]:
        stops = [*missing, *earlier]
        generation["eos_token_id"] = stops if len(stops) > 1 else stops[0]
    if texts := [word for word in ids if word not in tokens]:
        generation["stop_strings"] = texts
    if missing or texts:
        _write_json(folder / GENERATION_FILE, generation)
    is_other_end = bool(tokens) and tokenizer.eos_token not in tokens
    if is_other_end:
        _set_end(folder, next(iter(tokens)))
    return is_other_end or bool(missing or texts)


def _set_end(folder: Path, token: str) -> None:
    """Makes `token` the tokenizer's end-of-sequence token, at which servers stop."""
    settings = {**read_json(folder / TOKENIZER_CONFIG_FILE), "eos_token": token}
    _write_json(folder / TOKENIZER_CONFIG_FILE, settings)
    special = read_json(folder / _SPECIAL_TOKENS_FILE)
    if special:
        _write_json(folder / _SPECIAL_TOKENS_FILE, {**special, "eos_token": token})


def _single_id(tokenizer: PreTrainedTokenizerBase, text: str) -> int | None:
    """The id of a text that is a single token, None for several tokens."""
    ids: Sequence[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids[0] if len(ids) == 1 else None


def _generation_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that transformers takes from config.json if there is no generation_config.json."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    parts = [config.get("text_config") or {}, config]  # the outer ones count
    return {name: part[name] for part in parts for name in names if part.get(name) is not None}


def _copy(path: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    shutil.copy(path, target)


def _write_json(path: Path, content: Any) -> None:  # noqa: ANN401 - whatever JSON takes
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
