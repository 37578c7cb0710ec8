"""Conditions of a script: what its own values decide, and which values hang on one that they do not."""

from __future__ import annotations

import fnmatch
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from os.path import commonprefix

from tree_sitter import Node

from megatron_operator.translate.shell import arithmetic
from megatron_operator.translate.shell.literal import plain
from megatron_operator.translate.shell.nodes import is_evaluated, parsed, source
from megatron_operator.translate.shell.state import Reader
from megatron_operator.translate.shell.values import Values
from megatron_operator.translate.shell.words import spread, text_of

SAME_CHARACTERS = 40
Known = bool | None
"""Whether a condition holds; None where only a shell can tell."""


def assumed(ends: Sequence[Values]) -> Values:
    """The values after an undecided condition: those of the last branch, unless only another one can be evaluated.

    A value that no branch has evaluated is none where a branch leaves it unset: `${NAME:-default}` is the default.
    """
    last = ends[-1].copy()
    last.assumed = {name for end in ends for name in end.assumed}
    for name, value in ends[-1].variables.items():
        others = [end.variables[name] for end in ends[:-1] if name in end.variables]
        known = next((each for each in reversed(others) if is_evaluated(each)), None)
        if not is_evaluated(value) and known is not None:
            last.variables[name] = known
        elif not is_evaluated(value) and len(others) < len(ends) - 1:
            del last.variables[name]
    return last


def tell_differences(reader: Reader, node: Node, ends: Sequence[Values]) -> None:
    """Reports which variables depend on an undecided condition, and the values taken (in reader.values)."""
    if reader.skips:
        return
    taken = {
        **reader.values.variables,
        **{name: " ".join(each.values()) for name, each in reader.values.arrays.items()},
    }
    for name, value in taken.items():
        others = {end.variables.get(name, " ".join(end.arrays.get(name, {}).values())) for end in ends} - {value}
        if others:
            reader.values.assumed.add(name)
            shown, *shown_others = _apart([plain(value), *(plain(each) for each in sorted(others) if each)])
            listed = " or ".join(map(repr, shown_others)) or "unset"
            reader.tell(node, f"{name} depends on a condition: {shown!r} is assumed, it may also be {listed}")


def _apart(texts: Sequence[str]) -> list[str]:
    """The texts, without a long beginning that all have, such as the other arguments of an array."""
    same = commonprefix(list(texts)).rpartition(" ")[0] if len(texts) > 1 else ""
    return [f"...{each[len(same) :]}" for each in texts] if len(same) > SAME_CHARACTERS else list(texts)


def decided(reader: Reader, conditions: Sequence[Node]) -> bool | None:
    """Whether a condition of known values holds. None: only a shell can tell."""
    return holds(reader.values, conditions[0]) if len(conditions) == 1 else None


def only_assumed(reader: Reader, conditions: Sequence[Node], body: Sequence[Node]) -> bool:
    """Whether a branch that ends the script hangs on a value that is assumed: a check of files, which lie elsewhere."""
    text = " ".join(map(source, conditions))
    ends = any(source(each).split()[:1] in (["exit"], ["return"]) for each in body)
    return ends and any(re.search(rf"\b{name}\b", text) for name in reader.values.assumed)


def holds(values: Values, node: Node) -> bool | None:
    """Whether `[ ... ]`, `[[ ... ]]`, `(( ... ))`, `true` or a list of them holds; None for what runs a program."""
    match node.type:
        case "negated_command":
            return _not(holds(values, node.named_children[0]))
        case "list" if len(node.named_children) == 2:
            left, right = (holds(values, each) for each in node.named_children)
            return _both(left, right) if any(child.type == "&&" for child in node.children) else _either(left, right)
        case "compound_statement" if source(node).startswith("(("):
            number = arithmetic.calculated(spread(source(node)[2:-2], values), values.variables)
            return None if number is None else number != 0
        case "test_command" if source(node).startswith("[["):
            return _tree(values, node.named_children[0])
        case "test_command" | "command":
            given = [text_of(each, values) for each in words_of_test(source(node))]
            return _of_words(given[1:-1] if given[:1] == ["["] else given)
    return None


def words_of_test(text: str) -> list[Node]:
    """The words of `[ ... ]` or of a command, as a shell separates them."""
    command = next((node for node in parsed(f"x {text.strip()}\n").named_children), None)
    return [] if command is None else command.named_children[1:]


def _of_words(given: Sequence[str]) -> bool | None:
    """A test of the plain `[`, or the commands `true`, `false` and `test`."""
    if list(given) in (["true"], [":"], ["false"]):
        return given[0] != "false"
    words = list(given[1:]) if given[:1] == ["test"] else list(given)
    for sign, combine in (("-o", _either), ("-a", _both)):
        if sign in words[1:-1]:
            index = words.index(sign, 1)
            return combine(_of_words(words[:index]), _of_words(words[index + 1 :]))
    if words[:1] == ["!"]:
        return _not(_of_words(words[1:]))
    if len(words) == 2:
        return _unary(*words)
    return _compared(*words) if len(words) == 3 else None


def _tree(values: Values, node: Node) -> bool | None:
    """A test of `[[ ... ]]`, whose `=` and `!` the parser binds otherwise than a shell does."""
    known, left = _any_of(values, _pieces(node))
    return None if left else known


def _pieces(node: Node) -> list[Node]:
    """The operands and signs of a test in their order; one in parentheses is an operand."""
    if node.type not in ("binary_expression", "unary_expression"):
        return [node]
    return [piece for child in node.children for piece in _pieces(child)]


def _any_of(values: Values, pieces: list[Node]) -> tuple[Known, list[Node]]:
    """(what `a || b` decides, the pieces behind it)."""
    known, left = _all_of(values, pieces)
    while left and source(left[0]) == "||":
        other, left = _all_of(values, left[1:])
        known = _either(known, other)
    return known, left


def _all_of(values: Values, pieces: list[Node]) -> tuple[Known, list[Node]]:
    known, left = _one_of(values, pieces)
    while left and source(left[0]) == "&&":
        other, left = _one_of(values, left[1:])
        known = _both(known, other)
    return known, left


def _one_of(values: Values, pieces: list[Node]) -> tuple[Known, list[Node]]:
    if not pieces:
        return None, []
    first, *left = pieces
    if source(first) == "!":
        known, left = _one_of(values, left)
        return _not(known), left
    if first.type == "parenthesized_expression":
        return _tree(values, first.named_children[0]), left
    if first.type == "test_operator" and left:
        return _unary(source(first), text_of(left[0], values)), left[1:]
    text = text_of(first, values)
    if len(left) > 1 and source(left[0]) not in ("&&", "||"):
        return _compared(text, source(left[0]), text_of(left[1], values)), left[2:]
    return text != "" if is_evaluated(text) else None, left


def _unary(sign: str, text: str) -> bool | None:
    if sign not in ("-n", "-z") or not is_evaluated(text):
        return None
    return (text != "") == (sign == "-n")


def _compared(left: str, sign: str, right: str) -> bool | None:
    if not is_evaluated(left + right):
        return None
    if sign in NUMBERS:
        numbers = [arithmetic.calculated(re.sub(r"^0+(?=\d)", "", each), {}) for each in (left, right)]
        return None if None in numbers else NUMBERS[sign](*numbers)
    if sign == "=~":
        try:
            return bool(re.search(right, left))
        except re.error:
            return None
    if sign in ("=", "==", "!="):
        return fnmatch.fnmatchcase(left, right) == (sign != "!=")
    return None


def _not(value: Known) -> bool | None:
    return None if value is None else not value


def _both(left: Known, right: Known) -> bool | None:
    return False if False in (left, right) else None if None in (left, right) else True


def _either(left: Known, right: Known) -> bool | None:
    return True if True in (left, right) else None if None in (left, right) else False


NUMBERS: Mapping[str, Callable[..., bool]] = {
    "-eq": operator.eq,
    "-ne": operator.ne,
    "-lt": operator.lt,
    "-le": operator.le,
    "-gt": operator.gt,
    "-ge": operator.ge,
}
