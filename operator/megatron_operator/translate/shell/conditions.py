"""Conditions of a script: what its own values decide, and which values hang on one that they do not."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence

from tree_sitter import Node

from megatron_operator.translate.shell.state import Reader
from megatron_operator.translate.shell.words import Values, is_evaluated, parsed, source, text_of


def assumed(ends: Sequence[Values]) -> Values:
    """The values after an undecided condition: those of the last branch, unless only another one can be evaluated."""
    last = ends[-1].copy()
    for name, value in ends[-1].variables.items():
        others = [end.variables[name] for end in ends[:-1] if name in end.variables]
        known = next((each for each in reversed(others) if is_evaluated(each)), None)
        if not is_evaluated(value) and known is not None:
            last.variables[name] = known
    return last


def tell_differences(reader: Reader, node: Node, ends: Sequence[Values]) -> None:
    """Reports which variables depend on an undecided condition, and the values taken (in reader.values)."""
    if reader.skips:
        return
    taken = {**reader.values.variables, **{name: " ".join(each) for name, each in reader.values.arrays.items()}}
    for name, value in taken.items():
        others = {end.variables.get(name, " ".join(end.arrays.get(name, []))) for end in ends} - {value}
        if others:
            listed = " or ".join(repr(each) for each in sorted(others) if each) or "unset"
            reader.tell(node, f"{name} depends on a condition: {value!r} is assumed, it may also be {listed}")


def decided(reader: Reader, conditions: Sequence[Node]) -> bool | None:
    """Whether a `[ ... ]` of known values holds. None: only a shell can tell."""
    if len(conditions) != 1 or conditions[0].type not in ("test_command", "command"):
        return None
    text = source(conditions[0]).strip()
    if text in ("true", "false", ":"):
        return text != "false"
    found = re.fullmatch(r"(?:test\s+|\[\[?\s*)(?P<negated>!\s+)?(?P<words>.*?)\s*(?:\]\]?)?", text, re.DOTALL)
    if found is None or conditions[0].type != "test_command":
        return None
    left, comparison, right = _comparison(reader, found["words"])
    if not comparison or not is_evaluated(left + right):
        return None
    holds = {"-n": left != "", "-z": left == "", "=": fnmatch.fnmatchcase(left, right), "!=": left != right}[comparison]
    return holds != bool(found["negated"])


def _comparison(reader: Reader, text: str) -> tuple[str, str, str]:
    """(left, -n | -z | = | !=, right); an empty comparison for anything else."""
    nodes = [node for command in parsed(f"x {text}\n").named_children for node in command.named_children]
    given = [text_of(node, reader.values) for node in nodes[1:]]
    if len(given) == 2 and given[0] in ("-n", "-z"):
        return given[1], given[0], ""
    if len(given) == 3 and given[1] in ("=", "==", "!=", "-eq", "-ne"):
        return given[0], {"==": "=", "-eq": "=", "-ne": "!="}.get(given[1], given[1]), given[2]
    return "", "", ""
