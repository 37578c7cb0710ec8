"""`if`, `case` and lists (`a && b || c`): the branch that the script's own values decide, else every one, reported."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence

from tree_sitter import Node

from megatron_operator.translate.shell.conditions import assumed, decided, holds, only_assumed, tell_differences
from megatron_operator.translate.shell.nodes import is_evaluated
from megatron_operator.translate.shell.state import Reader
from megatron_operator.translate.shell.words import text_of, words

Statement = Callable[[Reader, Node], None]
Branch = tuple[bool | None, Sequence[Node]]
TESTS = ("test_command", "negated_command", "list")


def if_(reader: Reader, node: Node, statement: Statement) -> None:
    """The branches in their order, up to the one whose condition holds for certain."""
    branches: list[list[Node]] = [[]]
    conditions = [[each for each in node.children_by_field_name("condition") if each.is_named]]
    for child in node.named_children:
        if child.type == "elif_clause":
            after = [each.type for each in child.children].index("then")
            conditions.append([each for each in child.children[:after] if each.is_named])
            branches.append([each for each in child.children[after:] if each.is_named])
        elif child.type == "else_clause":
            conditions.append([])
            branches.append(child.named_children)
        elif child not in conditions[0]:
            branches[0].append(child)
    known = [
        None if each and only_assumed(reader, each, body) else decided(reader, each) if each else True
        for each, body in zip(conditions, branches, strict=True)
    ]
    for condition in (each for found, each in zip(known, conditions, strict=True) if found is None):
        started(reader, condition, statement)
    choose(reader, node, list(zip(known, branches, strict=True)), statement)


def started(reader: Reader, condition: Sequence[Node], statement: Statement) -> None:
    """The programs of a condition run, whatever it decides; the tests in it say nothing more."""
    for each in condition:
        if each.type in TESTS:
            started(reader, each.named_children if each.type != "test_command" else (), statement)
        else:
            statement(reader, each)


def case(reader: Reader, node: Node, statement: Statement) -> None:
    """The item whose pattern fits a value that is known."""
    subject = node.child_by_field_name("value")
    value = "" if subject is None else " ".join(words(subject, reader.values))
    branches: list[Branch] = []
    for item in (child for child in node.named_children if child.type == "case_item"):
        patterns = item.children_by_field_name("value")
        fits = any(fnmatch.fnmatchcase(value, text_of(pattern, reader.values)) for pattern in patterns)
        branches.append((fits if is_evaluated(value) else None, [c for c in item.named_children if c not in patterns]))
    choose(reader, node, branches, statement)


def choose(reader: Reader, node: Node, branches: Sequence[Branch], statement: Statement) -> None:
    """Reads the branches: True is taken and ends them, None may be taken, False is skipped.

    A branch that ends the script, the function or the loop ends it only where it is taken for certain.
    """
    before, ends, is_over, over = reader.values, [], False, ""
    if branches and branches[0][0] is not True:
        ends.append(before)
    for known, body in branches:
        taken = known is not False and not is_over
        reader.values, skips = before.copy(), reader.skips
        reader.skips = skips or not taken
        for child in body:
            statement(reader, child)
        reader.skips = skips
        if taken and reader.over:
            over, reader.over = reader.over, ""
            is_certain = known is True and all(each is False for each, _ in branches[: branches.index((known, body))])
            ends = [] if is_certain else ends
        elif taken:
            ends.append(reader.values)
        is_over = is_over or known is True
    reader.values = assumed(ends) if ends else before
    reader.over = "" if ends else over
    if not any(known is True for known, _ in branches[:1]) and any(known is None for known, _ in branches):
        tell_differences(reader, node, ends or [before])


def list_(reader: Reader, node: Node, statement: Statement) -> None:
    """`a && b`, `a || b`: what follows a test may not run."""
    _status(reader, node, statement)


def _status(reader: Reader, node: Node, statement: Statement) -> bool | None:
    """Reads the statement; whether it ends well, None where only a shell can tell."""
    if node.type != "list" or len(node.named_children) != 2:
        known = True if node.type in ("variable_assignment", "declaration_command") else holds(reader.values, node)
        statement(reader, node)
        return known
    first, then = node.named_children
    left = _status(reader, first, statement)
    goes_on = any(child.type == "&&" for child in node.children)
    known = None if left is None or only_assumed(reader, [first], [then]) else left == goes_on
    if known is None and goes_on and first.type not in TESTS:
        over = reader.over
        statement(reader, then)  # a program in front is taken to end well
        reader.over = over
        return None
    right: list[bool | None] = []
    choose(reader, node, [(known, [then])], lambda inner, each: right.append(_status(inner, each, statement)))
    if known and goes_on and right == [None]:
        return True  # a program that a test decides to run is taken to end well: `[ $A = 1 ] && run a || run b`
    return right[-1] if known and right else left if known is False else None
