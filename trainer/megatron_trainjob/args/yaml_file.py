"""Reads YAML as kubectl does (1e-5 is a number, a date is text), but rejects duplicate keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from megatron_trainjob import input_file
from megatron_trainjob.input_file import UnfitFile

MAX_CHARACTERS = 2**20
MAX_DEPTH = 100
MAX_VALUES = 200_000


class YamlProblem(ValueError):
    """The text is not valid YAML; the message names the source, the line and the problem."""


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 scalars where those of 1.1 are surprising, and without duplicate keys."""


def load(path: Path) -> Any:  # noqa: ANN401 (YAML holds anything)
    """The single document of a file. Raises YamlProblem, and OSError if the file cannot be read."""
    documents = load_all(path)
    if len(documents) > 1:
        raise YamlProblem(f"{path}: holds {len(documents)} documents, expected one; split the file at ---")
    return documents[0] if documents else None


def load_all(path: Path) -> list[Any]:
    """All documents of a file, empty ones left out. Raises YamlProblem, and OSError."""
    try:
        text = input_file.read_text(path, most_bytes=4 * MAX_CHARACTERS)
    except UnicodeDecodeError as err:
        raise YamlProblem(f"{path}: is not UTF-8 text; save it as UTF-8") from err
    except UnfitFile as err:
        raise YamlProblem(str(err)) from err
    return parse_text(text, source=str(path))


def parse_text(text: str, *, source: str = "<text>") -> list[Any]:
    """All documents of a text, empty ones left out. Raises YamlProblem, also if it would exhaust memory or time."""
    if len(text) > MAX_CHARACTERS:
        raise YamlProblem(f"{source}: has {len(text)} characters; a manifest has at most {MAX_CHARACTERS}")
    try:
        _check_size(text, source)
        return [document for document in yaml.load_all(text, _Loader) if document is not None]
    except ValueError as err:
        if isinstance(err, YamlProblem):
            raise
        raise YamlProblem(f"{source}: holds a number that cannot be read: {err}") from err
    except yaml.MarkedYAMLError as err:
        raise YamlProblem(f"{source}{_where(err.problem_mark)}: {err.problem}") from err
    except yaml.YAMLError as err:
        raise YamlProblem(f"{source}: {err}") from err


def _check_size(text: str, source: str) -> None:
    """Rejects excessive nesting and alias expansion before constructing anything.

    An alias counts as many values as its target: nine lines of nine aliases each are 387 million values.
    """
    sizes: dict[str, int] = {}
    open_parts: list[tuple[str | None, int]] = []
    total = 0
    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_parts.pop()
            if anchor:
                sizes[anchor] = total - before
        elif isinstance(event, yaml.CollectionStartEvent):
            open_parts.append((event.anchor, total))
            total += 1
        elif isinstance(event, yaml.AliasEvent):
            total += sizes.get(event.anchor or "", 1)
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
            if event.anchor:
                sizes[event.anchor] = 1
        if len(open_parts) > MAX_DEPTH:
            raise YamlProblem(f"{source}{_where(event.start_mark)}: is nested more than {MAX_DEPTH} deep")
        if total > MAX_VALUES:
            raise YamlProblem(
                f"{source}{_where(event.start_mark)}: its aliases expand to more than {MAX_VALUES} values"
            )


def _where(mark: Any) -> str:  # noqa: ANN401 (two classes that have a line)
    return f" line {mark.line + 1}" if mark else ""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    """A mapping without duplicate keys; keys merged through << may be overridden."""
    first_line: dict[Any, int] = {}
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key must be text", key_node.start_mark)
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if key in first_line:
            problem = f"key {key!r} is written twice, here and in line {first_line[key]}; keep one"
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        first_line[key] = line
    return loader.construct_mapping(node, deep=True)


def _without(tag: str) -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    return {
        first: [(name, pattern) for name, pattern in resolvers if name != f"tag:yaml.org,2002:{tag}"]
        for first, resolvers in _Loader.yaml_implicit_resolvers.items()
    }


FLOAT = re.compile(r"^[-+]?(?:\d[\d_]*(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$")
INT = re.compile(r"^[-+]?(?:0b[01_]+|0x[\da-fA-F_]+|0[0-7_]*|[1-9][\d_]*)$")

for unwanted in ("float", "int", "timestamp"):
    _Loader.yaml_implicit_resolvers = _without(unwanted)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", INT, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789."))
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
