"""The commands of a shell script with what is known of their variables. Runs nothing.

Functions are followed where they are called, loops for each of their values, `case` and `if` into the branch that the
script's own values decide; of a condition that they do not decide every branch is read, which is reported. Files that
the script sources, or writes itself with a here-document, are read. What is not understood is reported.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tree_sitter import Node

from megatron_operator.translate.programs import ASSIGNMENT, passed_on, program, reads_script, script_in
from megatron_operator.translate.shell.builtins import BUILTINS, script_file
from megatron_operator.translate.shell.conditions import assumed, decided, tell_differences
from megatron_operator.translate.shell.state import Reader, Script
from megatron_operator.translate.shell.words import (
    MAX_COUNT,
    Values,
    expanded,
    is_evaluated,
    parsed,
    source,
    text_of,
    words,
)

OWN_ARGUMENTS = re.compile(r"\$(?:[@*]|\{[@*][^}]*\})")
EXPORTING = ("export", "declare -x", "typeset -x")
HEADER = re.compile(r"#(SBATCH|BSUB|PBS|COBALT|\$)\s+(?P<option>.+)")
COUNTED = re.compile(
    r"for\s*\(\(\s*(?P<name>\w+)\s*=\s*(?P<first>\d+)\s*;\s*(?P=name)\s*(?P<comparison><=?)\s*(?P<last>\d+)\s*;"
    r"\s*(?:(?P=name)\+\+|\+\+(?P=name))\s*$"
)
VARIABLE = re.compile(r"\$\{\w+\}|\$\w+")
MAX_DEPTH = 8


def read(
    script: str,
    folder: Path | None = None,
    files: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Script:
    """The script's commands.

    folder: where the files lie that it sources or starts. files: others by their paths. environment: of its shell.
    """
    reader = Reader(Values(dict(environment or {})), folder, files=dict(files or {}))
    _read(reader, script)
    return Script(
        commands=tuple(reader.found),
        skipped=tuple(reader.skipped),
        header=tuple(reader.header),
        remarks=tuple(reader.remarks),
        files=reader.files,
    )


def without_own_arguments(given: list[str]) -> tuple[list[str], bool]:
    """(the words without `$@`, the arguments of the script or function that runs them; whether it was among them)."""
    kept = [word for word in given if not OWN_ARGUMENTS.fullmatch(word)]
    return kept, len(kept) != len(given)


def _read(reader: Reader, script: str) -> None:
    if reader.depth >= MAX_DEPTH:
        reader.remarks["scripts within scripts are not followed any deeper"] = None
        return
    reader.depth += 1
    root = parsed(script if script.endswith("\n") else script + "\n")
    for each in (found for found in _broken(root) if source(found).strip()):
        reader.tell(each, f"not understood as a script: {source(each).strip()[:80]!r}")
    _statements(reader, root)
    reader.depth -= 1


def _broken(node: Node) -> Iterator[Node]:
    """The places that are no shell."""
    if node.is_error:
        yield node
    elif node.has_error:
        for child in node.children:
            yield from _broken(child)


def _statements(reader: Reader, node: Node) -> None:
    for child in node.named_children:
        _statement(reader, child)


def _statement(reader: Reader, node: Node) -> None:
    STATEMENTS.get(node.type, _statements)(reader, node)


def _comment(reader: Reader, node: Node) -> None:
    found = HEADER.match(source(node))
    if found:
        reader.header.append(found["option"].partition(" #")[0].strip())


def _define(reader: Reader, node: Node) -> None:
    name = node.child_by_field_name("name")
    if name is not None:
        reader.functions[source(name)] = node


def _assign(reader: Reader, node: Node) -> None:
    """`NAME=value`, `NAME+=value`, `NAME=(...)`, `NAME[0]=value`."""
    name, value = node.child_by_field_name("name"), node.child_by_field_name("value")
    if name is None:
        return
    adds = any(child.type == "+=" for child in node.children)
    values, key = reader.values, source(name)
    if value is not None and value.type == "array":
        listed = [word for child in value.named_children if child.type != "comment" for word in words(child, values)]
        values.arrays[key] = [*values.arrays.get(key, []), *listed] if adds else listed
        values.variables.pop(key, None)
        return
    text = "" if value is None else text_of(value, values)
    if name.type == "subscript":
        base, _, index = key.removesuffix("]").partition("[")
        values.arrays.setdefault(base, []).extend([text] if index.isdigit() else [])
        return
    values.arrays.pop(key, None)
    values.variables[key] = values.variables.get(key, "") + text if adds else text


def _declare(reader: Reader, node: Node) -> None:
    """`export NAME=value`, `export NAME`, `declare -x NAME=value`, `local NAME=value`."""
    for child in node.named_children:
        if child.type == "variable_assignment":
            _assign(reader, child)
        named = child.child_by_field_name("name") or child
        if source(node).startswith(EXPORTING) and named.type == "variable_name":
            reader.exported.add(source(named))


def _if(reader: Reader, node: Node) -> None:
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
    holds = [decided(reader, each) if each else True for each in conditions]
    _branches(reader, node, list(zip(holds, branches, strict=True)))


def _case(reader: Reader, node: Node) -> None:
    """The item whose pattern fits a value that is known."""
    subject = node.child_by_field_name("value")
    value = "" if subject is None else " ".join(words(subject, reader.values))
    branches: list[tuple[bool | None, list[Node]]] = []
    for item in (child for child in node.named_children if child.type == "case_item"):
        patterns = item.children_by_field_name("value")
        fits = any(fnmatch.fnmatchcase(value, text_of(pattern, reader.values)) for pattern in patterns)
        branches.append((fits if is_evaluated(value) else None, [c for c in item.named_children if c not in patterns]))
    _branches(reader, node, branches)


def _branches(reader: Reader, node: Node, branches: Sequence[tuple[bool | None, list[Node]]]) -> None:
    """Reads the branches: True is taken and ends them, None may be taken, False is skipped."""
    before, ends, is_over = reader.values, [], False
    if branches and branches[0][0] is not True:
        ends.append(before)
    for holds, body in branches:
        taken = holds is not False and not is_over
        reader.values, skips = before.copy(), reader.skips
        reader.skips = skips or not taken
        for child in body:
            _statement(reader, child)
        reader.skips = skips
        if taken:
            ends.append(reader.values)
        is_over = is_over or holds is True
    reader.values = assumed(ends) if ends else before
    if not any(holds is True for holds, _ in branches[:1]) and any(holds is None for holds, _ in branches):
        tell_differences(reader, node, ends)


def _list(reader: Reader, node: Node) -> None:
    """`a && b`, `a || b`: what follows a test may not run."""
    first, *others = node.named_children
    _statement(reader, first)
    operators = [child.type for child in node.children if child.type in ("&&", "||")]
    if first.type != "test_command" or not others:
        for each in others:
            _statement(reader, each)
        return
    holds = decided(reader, [first])
    wanted = None if holds is None else holds == (operators[:1] == ["&&"])
    _branches(reader, node, [(wanted, others)])


def _for(reader: Reader, node: Node) -> None:
    """The body once for each value."""
    name, body = node.child_by_field_name("variable"), node.child_by_field_name("body")
    given = [word for child in node.children_by_field_name("value") for word in words(child, reader.values)]
    if name is None or body is None:
        return
    known = [value for value in given if is_evaluated(value)][:MAX_COUNT]
    if known != given:
        reader.tell(node, f"the values of ${source(name)} in this loop are not known: {' '.join(given)[:60]}")
        reader.values.variables.pop(source(name), None)
        known = known or [""]
    for value in known:
        if value:
            reader.values.variables[source(name)] = value
        _statements(reader, body)


def _counted(reader: Reader, node: Node) -> None:
    """`for ((i = 0; i < 3; i++))`."""
    body = node.child_by_field_name("body")
    text = VARIABLE.sub(lambda each: expanded(each[0], reader.values), source(node).partition("))")[0])
    found = COUNTED.match(text)
    if body is None:
        return
    if found is None:
        reader.tell(node, "a loop that counts is read once, without its number")
        reader.values.variables.pop(text.partition("((")[2].partition("=")[0].strip(), None)
        _statements(reader, body)
        return
    last = int(found["last"]) + (found["comparison"] == "<=")
    for value in range(int(found["first"]), last)[:MAX_COUNT]:
        reader.values.variables[found["name"]] = str(value)
        _statements(reader, body)


def _redirected(reader: Reader, node: Node) -> None:
    """A command with redirections: a here-document may be its script, its value, or a file that it writes."""
    body, *others = node.named_children
    extra = [word for each in others if each.type == "file_redirect" for word in _after_target(reader, each)]
    document = next((each for each in others if each.type in ("heredoc_redirect", "herestring_redirect")), None)
    if body.type != "command":
        _statement(reader, body)
    elif document is None:
        _command(reader, body, extra)
    else:
        targets = [
            text_of(target, reader.values)
            for each in (*others, *document.named_children)
            if each.type == "file_redirect"
            for target in each.children_by_field_name("destination")[:1]
        ]
        _documented(reader, body, _document(reader, document), targets)
        for child in document.named_children:
            if child.type in STATEMENTS or child.type in ("pipeline", "command"):
                _statement(reader, child)


def _after_target(reader: Reader, redirect: Node) -> list[str]:
    """Words behind `> log.txt`, which belong to the command."""
    return [word for each in redirect.children_by_field_name("destination")[1:] for word in words(each, reader.values)]


def _document(reader: Reader, node: Node) -> str:
    """The text of `<<EOF` (with values, unless EOF is quoted) or `<<<`."""
    if node.type == "herestring_redirect":
        return text_of(node.named_children[-1], reader.values)
    body = next((child for child in node.named_children if child.type == "heredoc_body"), None)
    start = next((source(child) for child in node.named_children if child.type == "heredoc_start"), "")
    if body is None:
        return ""
    return source(body) if {"'", '"', "\\"} & set(start) else text_of(body, reader.values)


def _documented(reader: Reader, node: Node, text: str, targets: Sequence[str]) -> None:
    own, given = _command_words(reader, node)
    name = program(given[0]) if given else ""
    if given and reads_script(given):
        _nested(reader, text, given, {**own, **passed_on(given)})
    elif name == "read":
        reader.values.variables[given[-1]] = text.strip()
    elif name in ("cat", "tee") and (targets or given[1:]):
        reader.files[targets[0] if targets else given[-1]] = text
    else:
        _run(reader, node, own, given)


def _command(reader: Reader, node: Node, extra: Sequence[str] = ()) -> None:
    inline = next((child for child in node.named_children if child.type == "herestring_redirect"), None)
    if inline is not None:
        _documented(reader, node, _document(reader, inline), ())
        return
    own, given = _command_words(reader, node)
    _run(reader, node, own, [*given, *extra])


def _command_words(reader: Reader, node: Node) -> tuple[dict[str, str], list[str]]:
    """(the assignments in front, the words)."""
    own: dict[str, str] = {}
    given: list[str] = []
    for child in node.named_children:
        if child.type == "variable_assignment":
            inner = Reader(reader.values.copy(), None)
            _assign(inner, child)
            own |= {
                name: value
                for name, value in inner.values.variables.items()
                if reader.values.variables.get(name) != value
            }
        elif child.type == "command_name":
            given += [word for part in child.named_children for word in words(part, reader.values)]
        elif child.type == "file_redirect":
            given += _after_target(reader, child)
        elif child.type != "herestring_redirect":
            given += words(child, reader.values)
    return own, given


def _run(reader: Reader, node: Node, own: Mapping[str, str], given: list[str]) -> None:
    """One simple command: a function or builtin of the shell, a script of its own, or a program."""
    if not given:
        reader.values.variables |= own
        return
    while given and ASSIGNMENT.fullmatch(given[0]):  # of an evaluated word, as in `$ENV megatron sft`
        name, _, value = given.pop(0).partition("=")
        own = {**own, name: value}
    if not given:
        return
    builtin = BUILTINS.get(given[0])
    if given[0] in reader.functions:
        _call(reader, reader.functions[given[0]], given[1:])
    elif builtin is not None:
        script = builtin(reader, node, given)
        if script is not None:
            _read(reader, script)
    elif (file := script_file(reader, given)) is not None:
        _nested(reader, file[0], given[:1], own, file[1])
    else:
        before, inner = script_in(given)
        if not inner or not _nested(reader, inner, before or given[:1], {**own, **passed_on(before)}):
            reader.add(own, given)


def _call(reader: Reader, function: Node, given: list[str]) -> None:
    """A function with the arguments of its call."""
    body = function.child_by_field_name("body")
    if body is None or reader.depth >= MAX_DEPTH:
        return
    outer, reader.values.arguments = reader.values.arguments, given
    reader.depth += 1
    _statement(reader, body)
    reader.depth -= 1
    reader.values.arguments = outer


def _nested(
    reader: Reader, script: str, before: Sequence[str], own: Mapping[str, str], arguments: list[str] | None = None
) -> bool:
    """Reads the script of another shell with what is known here; whether it had a command."""
    inner = Reader(
        reader.values.copy(),
        reader.folder,
        dict(reader.functions),
        dict(reader.files),
        depth=reader.depth,
        skips=reader.skips,
    )
    inner.values.variables |= own
    inner.values.arguments = arguments if arguments is not None else inner.values.arguments
    inner.behind, inner.exported = (*reader.behind, *before), {*reader.exported, *own}
    _read(inner, script)
    reader.found += inner.found
    reader.skipped += inner.skipped
    reader.header += inner.header
    reader.remarks |= inner.remarks
    if list(before[:1]) == ["eval"]:
        reader.values = inner.values
    return bool(inner.found or inner.skipped)


STATEMENTS: Mapping[str, Callable[[Reader, Node], None]] = {
    "comment": _comment,
    "function_definition": _define,
    "variable_assignment": _assign,
    "declaration_command": _declare,
    "if_statement": _if,
    "case_statement": _case,
    "list": _list,
    "for_statement": _for,
    "c_style_for_statement": _counted,
    "redirected_statement": _redirected,
    "command": _command,
    "test_command": lambda reader, node: None,
}
