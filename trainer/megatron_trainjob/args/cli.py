"""Parses a command line as the reference does: --name value, kebab-case too, lists by spaces or repetition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_trainjob.args import yaml_file
from megatron_trainjob.args.field import Argument, Task
from megatron_trainjob.args.names import find_alias
from megatron_trainjob.args.parse import Parsed, Refused, parse
from megatron_trainjob.args.tree import ARGUMENTS
from megatron_trainjob.args.value import from_text
from megatron_trainjob.violation import Violation

PATH = "args"


def parse_command_line(
    argv: Sequence[str],
    task: Task,
    *,
    world_size: int | None = None,
    hf_config: Mapping[str, Any] | None = None,
) -> Parsed:
    """The arguments of a command line; `--config file.yaml` supplies what the flags leave unset.

    A boolean flag without a value means true. Every problem of flags and file is reported at once, the path
    being "args.<name>"; `world_size` and `hf_config` are those of `parse`.
    """
    values, problems = written_values(argv, task)
    parsed = parse(values, task=task, path=PATH, world_size=world_size, hf_config=hf_config)
    if problems:
        return Refused(violations=(*problems, *parsed.violations), warnings=parsed.warnings)
    return parsed


def written_values(argv: Sequence[str], task: Task) -> tuple[dict[str, object], list[Violation]]:
    """(values by name as written, parsed by type; violations) of flags and --config files."""
    problems: list[Violation] = []
    flags = _flags(argv, problems)
    values: dict[str, object] = {}
    for file in flags.pop("config", []):
        values |= _read_config(file, problems)
    for name, words in flags.items():
        values = _without_other_names(values, name, task) | {name: _value(name, words, task)}
    return values, problems


def _flags(argv: Sequence[str], problems: list[Violation]) -> dict[str, list[str]]:
    """The words that follow each flag, in order; a repeated flag collects them all."""
    flags: dict[str, list[str]] = {}
    current: list[str] | None = None
    for word in argv:
        if word.startswith("--") and len(word) > 2:
            flag, separator, value = word[2:].partition("=")
            current = flags.setdefault(flag.replace("-", "_"), [])
            current += [value] if separator else []
        elif current is None:
            message = "is not a flag; arguments are written --name value"
            problems.append(Violation(path=PATH, value=word, message=message))
        else:
            current.append(word)
    return flags


def _read_config(file: str, problems: list[Violation]) -> Mapping[str, object]:
    try:
        content = yaml_file.load(Path(file))
    except (OSError, yaml_file.YamlProblem) as err:
        problems.append(Violation(path=f"{PATH}.config", value=file, message=f"cannot be read: {err}"))
        return {}
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        message = "must contain one mapping of argument names to values"
        problems.append(Violation(path=f"{PATH}.config", value=file, message=message))
        return {}
    return content


def _without_other_names(values: Mapping[str, object], name: str, task: Task) -> dict[str, object]:
    """The values of a file without those that flags replace, under whichever name the file has them."""
    return {key: value for key, value in values.items() if _canonical(key, task) != _canonical(name, task)}


def _canonical(name: str, task: Task) -> str:
    alias = find_alias(name, task)
    return alias.canonical if alias else name


def _value(name: str, words: list[str], task: Task) -> object:
    argument = ARGUMENTS.get(_canonical(name, task))
    if argument is None:
        return " ".join(words)
    if argument.is_list:
        return [element for word in words for element in _elements(argument, word)]
    if argument.type == "bool" and not words:
        return True
    if len(words) != 1:
        return words
    return from_text(argument, words[0])


def _elements(argument: Argument, word: str) -> list[object]:
    elements = from_text(argument, word)
    return elements if isinstance(elements, list) else [elements]
