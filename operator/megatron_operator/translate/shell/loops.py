"""Loops of a script: the body once for each value, number or line that is known, else once, which is reported."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from tree_sitter import Node

from megatron_operator.translate.shell.arithmetic import assigned, calculated
from megatron_operator.translate.shell.branches import TESTS, choose, started
from megatron_operator.translate.shell.conditions import holds
from megatron_operator.translate.shell.filters import MAX_COUNT
from megatron_operator.translate.shell.nodes import is_evaluated, source
from megatron_operator.translate.shell.state import Reader
from megatron_operator.translate.shell.words import spread, text_of, words

Statement = Callable[[Reader, Node], None]


def for_(reader: Reader, node: Node, statement: Statement) -> None:
    """The body once for each value."""
    name, body = node.child_by_field_name("variable"), node.child_by_field_name("body")
    given = [word for child in node.children_by_field_name("value") for word in words(child, reader.values)]
    if name is None or body is None:
        return
    known = [value for value in given if is_evaluated(value) and not _is_pattern(node, value)]
    if known != given:
        reader.tell(node, f"the values of ${source(name)} in this loop are not known: {' '.join(given)[:60]}")
        reader.values.variables.pop(source(name), None)
        known = known or [""]
    for value in _first(reader, node, known):
        if value:
            reader.values.variables[source(name)] = value
        if _ends(reader, body, statement):
            break


def _is_pattern(node: Node, value: str) -> bool:
    """Whether a shell puts the names of files in its place."""
    return bool(re.search(r"[*?]|\[.+\]", value)) and value in source(node)


def counted(reader: Reader, node: Node, statement: Statement) -> None:
    """`for ((i = 0; i < 3; i++))`."""
    body = node.child_by_field_name("body")
    head = re.sub(r"^\s*for\s*\(\(", "", source(node).partition("))")[0]).split(";")
    first = assigned(spread(head[0], reader.values), reader.values.variables)
    if body is None or first is None:
        return
    name, value = first
    for _ in range(MAX_COUNT):
        reader.values.variables.pop(name, None)
        reader.values.variables |= {} if value is None else {name: str(value)}
        goes_on = calculated(head[1], reader.values.variables) if len(head) == 3 else None
        if goes_on is None:
            reader.values.variables.pop(name, None)
            reader.tell(node, "a loop that counts is read once, without its number")
            _ends(reader, body, statement)
            return
        if not goes_on or _ends(reader, body, statement):
            return
        value = (assigned(head[2], reader.values.variables) or (name, None))[1]
    reader.tell(node, f"only the first {MAX_COUNT} rounds of this loop are read")


def while_(reader: Reader, node: Node, statement: Statement) -> None:
    """`while` and `until`: for each line that is read, as long as a test of known values holds, else once."""
    *conditions, body = [child for child in node.named_children if child.type != "comment"]
    condition = conditions[-1] if conditions else body
    reads = re.match(r"(?:IFS=(?P<separator>'[^']*'|\"[^\"]*\"|\$'[^']*'|\S*)\s+)?read\b", source(condition))
    if reads is not None:
        separator = _separator(reads["separator"])
        return _lines(reader, condition, body, separator, statement)
    for _ in range(MAX_COUNT):
        known = holds(reader.values, condition)
        if known is not None and node.children[0].type == "until":
            known = not known
        if known is False:
            return None
        if known is None:
            started(reader, [condition], statement)
            if condition.type in TESTS:
                return choose(reader, node, [(None, [body])], lambda inner, each: _loop_body(inner, each, statement))
        before = (dict(reader.values.variables), reader.values.arguments)
        if _ends(reader, body, statement) or known is None:
            return None
        if before == (reader.values.variables, reader.values.arguments):
            return None  # the same again and again
    reader.tell(node, f"only the first {MAX_COUNT} rounds of this loop are read")
    return None


def _loop_body(reader: Reader, body: Node, statement: Statement) -> None:
    _ends(reader, body, statement)


def _lines(reader: Reader, condition: Node, body: Node, separator: str | None, statement: Statement) -> None:
    """`while read NAME ...`: the body for each line of the input."""
    names = variables_of_read(condition, reader)
    text, reader.input = reader.input, None
    if text is None:
        reader.tell(condition, f"the lines that this loop reads into {' '.join(names)} are not known; it is read once")
        for name in names:
            reader.values.variables.pop(name, None)
        _ends(reader, body, statement)
        return
    for line in _first(reader, condition, text.splitlines()):
        reader.values.variables |= fields(line, names, separator)
        if _ends(reader, body, statement):
            break


def variables_of_read(node: Node, reader: Reader) -> list[str]:
    """The names that `read -r a b` sets."""
    given = [text_of(child, reader.values) for child in node.named_children if child.type in ("word", "variable_name")]
    return [word for word in given if re.fullmatch(r"[A-Za-z_]\w*", word)] or ["REPLY"]


def fields(line: str, names: Sequence[str], separator: str | None = None) -> dict[str, str]:
    """What `read` puts into its variables; the last takes what is left."""
    if separator == "":
        return {names[0]: line, **dict.fromkeys(names[1:], "")}
    parts = line.strip() if separator is None else line
    split = parts.split(separator, len(names) - 1)
    return {name: split[index] if index < len(split) else "" for index, name in enumerate(names)}


def _separator(written: str | None) -> str | None:
    """The character of `IFS=,`, None for blanks; of several the first."""
    if written is None:
        return None
    return written.removeprefix("$").strip("'\"").replace("\\t", "\t")[:1]


def _first[Value](reader: Reader, node: Node, values: Sequence[Value]) -> Sequence[Value]:
    if len(values) > MAX_COUNT:
        reader.tell(node, f"only the first {MAX_COUNT} of {len(values)} rounds of this loop are read")
    return values[:MAX_COUNT]


def _ends(reader: Reader, body: Node, statement: Statement) -> bool:
    """Reads one round; whether the loop ends with it for certain."""
    statement(reader, body)
    over = reader.over
    if over in ("break", "continue"):
        reader.over = ""
    return over not in ("", "continue")
