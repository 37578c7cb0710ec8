"""The commands of a shell script with what is known of their variables. Runs nothing.

Functions are followed where they are called, loops for each of their values, `case` and `if` into the branch that the
script's own values decide; of a condition that they do not decide every branch is read, which is reported. Files that
the script sources, or writes itself with a here-document, are read. What is not understood is reported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from tree_sitter import Node

from megatron_operator.translate.programs import (
    ASSIGNMENT,
    arguments_of_script,
    cleared,
    passed_on,
    program,
    reads_script,
    script_in,
)
from megatron_operator.translate.shell import branches, loops, written_files
from megatron_operator.translate.shell.assignments import assign, declare, restore_outer
from megatron_operator.translate.shell.builtins import BUILTINS, calculate, read_file, repeated, script_file, unset
from megatron_operator.translate.shell.folders import WORKDIR
from megatron_operator.translate.shell.literal import kept, plain
from megatron_operator.translate.shell.nodes import parsed, source
from megatron_operator.translate.shell.parallel import of_parallel
from megatron_operator.translate.shell.state import Reader, Script
from megatron_operator.translate.shell.values import Values
from megatron_operator.translate.shell.words import document_text, listed_words, text_of, words, written_by

HEADER = re.compile(r"#(SBATCH|BSUB|PBS|COBALT|\$)\s+(?P<option>.+)")
REMARK = re.compile(r"(?<=\s)`#[^`\n]*`(?=[ \t]*\\\n)")
"""A comment between continued lines, `# such as this` with a backslash behind it, which the parser takes for more."""
MAX_DEPTH = 8


def read(
    script: str,
    folder: Path | None = None,
    files: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    path: str | None = None,
    start: str | None = None,
) -> Script:
    """The script's commands.

    folder: where the files lie that it sources or starts. files: others by their paths. environment: of its shell.
    path: of the script, as it is started. start: the folder that it is started in.
    """
    given = dict(environment or {})
    reader = Reader(Values(given), folder, files=dict(files or {}), inherited=frozenset(given))
    reader.values.file = partial(read_file, reader)
    reader.values.script = reader.values.sourced = path
    reader.values.folder = start or WORKDIR
    _read(reader, script)
    return Script(
        commands=tuple(reader.found),
        skipped=tuple(reader.skipped),
        header=tuple(reader.header),
        remarks=tuple(reader.remarks),
        files=reader.files,
    )


def _read(reader: Reader, script: str) -> None:
    if reader.depth >= MAX_DEPTH:
        reader.remarks["scripts within scripts are not followed any deeper"] = None
        return
    reader.depth += 1
    script = REMARK.sub("", plain(script))
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
    """One statement; behind `exit` and the like it is read as one that is not taken."""
    read_statement = STATEMENTS.get(node.type, _statements)
    if not reader.over or reader.skips:
        return read_statement(reader, node)
    values, reader.skips = reader.values, True
    reader.values = values.copy()
    read_statement(reader, node)
    reader.values, reader.skips = values, False
    return None


def _comment(reader: Reader, node: Node) -> None:
    found = HEADER.match(source(node))
    if found:
        reader.header.append(found["option"].partition(" #")[0].strip())


def _define(reader: Reader, node: Node) -> None:
    name = node.child_by_field_name("name")
    if name is not None:
        reader.functions[source(name)] = node


def _subshell(reader: Reader, node: Node) -> None:
    """`( ... )`: what it sets and where it ends is its own."""
    _apart(reader, node.named_children)


def _apart(reader: Reader, statements: Iterable[Node]) -> None:
    values, exported, over = reader.values, set(reader.exported), reader.over
    reader.values = values.copy()
    for each in statements:
        _statement(reader, each)
    reader.values, reader.exported, reader.over = values, exported, over


def _group(reader: Reader, node: Node) -> None:
    """`{ ... }`, or `(( N += 1 ))`."""
    if source(node).startswith("(("):
        calculate(reader, source(node)[2:-2])
    else:
        _statements(reader, node)


def _pipeline(reader: Reader, node: Node) -> None:
    """`cat list.txt | while read ...`: what simple programs write is read by the command behind them."""
    outer, text = reader.input, None
    for stage in node.named_children:
        written = written_by(stage, reader.values, text)
        if written is None:
            reader.input = None if text is None else kept(text)
            _apart(reader, [stage])
        text = written
    reader.input = outer


def _redirected(reader: Reader, node: Node) -> None:
    """A command with redirections: a here-document may be its script, its value, or a file that it writes."""
    body, *others = node.named_children
    extra = [word for each in others if each.type == "file_redirect" for word in _after_target(reader, each)]
    document = next((each for each in others if each.type in ("heredoc_redirect", "herestring_redirect")), None)
    outer, reader.input = reader.input, _input(reader, others, document)
    if body.type != "command":
        _statement(reader, body)
    elif document is None:
        written_files.keep(reader, node, others)
        _command(reader, body, extra)
    else:
        targets = [
            text_of(target, reader.values)
            for each in (*others, *document.named_children)
            if each.type == "file_redirect"
            for target in each.children_by_field_name("destination")[:1]
        ]
        _documented(reader, body, document_text(document, reader.values), targets)
        for child in document.named_children:
            if child.type in STATEMENTS or child.type in ("pipeline", "command"):
                _statement(reader, child)
    reader.input = outer


def _input(reader: Reader, redirects: Sequence[Node], document: Node | None) -> str | None:
    """The text of `< file`, `< <(cat file)`, `<<EOF` or `<<<`; without one what the statement around reads."""
    if document is not None:
        return document_text(document, reader.values)
    for each in redirects:
        target = each.child_by_field_name("destination")
        if source(each).lstrip("0").startswith("<") and target is not None:
            inner = target.named_children if target.type == "process_substitution" else ()
            text = (
                written_by(inner[0], reader.values, None)
                if inner
                else read_file(reader, plain(text_of(target, reader.values)))
            )
            return None if text is None else kept(text)
    return reader.input


def _after_target(reader: Reader, redirect: Node) -> list[str]:
    """Words behind `> log.txt`, which belong to the command."""
    return [word for each in redirect.children_by_field_name("destination")[1:] for word in words(each, reader.values)]


def _documented(reader: Reader, node: Node, text: str, targets: Sequence[str]) -> None:
    own, given = _command_words(reader, node)
    name = program(given[0]) if given else ""
    if given and reads_script(given):
        _nested(reader, text, given, {**own, **passed_on(given)})
    elif name in ("read", "mapfile", "readarray", "xargs"):
        outer, reader.input = reader.input, text
        _run(reader, node, own, given)
        reader.input = outer
    elif name in ("cat", "tee") and (targets or given[1:]):
        for written in (*targets, *(given[1:] if name == "tee" else ())):
            reader.files[written] = plain(text)
    else:
        _run(reader, node, own, given)


def _command(reader: Reader, node: Node, extra: Sequence[str] = ()) -> None:
    inline = next((child for child in node.named_children if child.type == "herestring_redirect"), None)
    if inline is not None:
        _documented(reader, node, document_text(inline, reader.values), ())
        return
    own, given = _command_words(reader, node)
    _run(reader, node, own, [*given, *extra])


def _command_words(reader: Reader, node: Node) -> tuple[dict[str, str], list[str]]:
    """(the assignments in front, the words)."""
    own: dict[str, str] = {}
    given: list[str] = []
    behind: list[Node] = []
    for child in node.named_children:
        if child.type == "variable_assignment":
            inner = Reader(reader.values.copy(), None)
            assign(inner, child)
            own |= {
                name: value
                for name, value in inner.values.variables.items()
                if reader.values.variables.get(name) != value
            }
        elif child.type == "command_name":
            given += [word for part in child.named_children for word in words(part, reader.values)]
        elif child.type == "file_redirect":
            behind += child.children_by_field_name("destination")[1:]
        elif child.type != "herestring_redirect":
            behind.append(child)
    return own, [*given, *listed_words(behind, node, reader.values)]


def _run(reader: Reader, node: Node, own: Mapping[str, str], given: list[str]) -> None:
    """One simple command: a function or builtin of the shell, a script of its own, or a program."""
    if not given:
        reader.values.variables |= own
        return
    own, given = _with_assigned(own, given)
    if not given or _is_repeated(reader, node, own, given):
        return
    if given[0] in reader.functions:
        _call(reader, reader.functions[given[0]], given[1:])
    elif given[0] in BUILTINS:
        _builtin(reader, node, own, given)
    elif (file := script_file(reader, given)) is not None:
        _nested(reader, file[0], file[2], {**own, **passed_on(file[2])}, file[1], file[3])
    else:
        before, inner = script_in(given)
        is_eval = given[0] == "eval"
        arguments = reader.values.arguments if is_eval else arguments_of_script(given, inner)
        if not inner or not _nested(reader, inner, before or given[:1], {**own, **passed_on(before)}, arguments):
            reader.add(own, given)


def _builtin(reader: Reader, node: Node, own: Mapping[str, str], given: list[str]) -> None:
    """A command of the shell itself; the assignments in front of it are its own."""
    variables, arguments = reader.values.variables, reader.values.arguments
    outer = {name: variables.get(name) for name in own}
    variables |= own
    script = BUILTINS[given[0]](reader, node, given)
    for name, text in outer.items():
        if variables.get(name) == own[name]:
            variables.pop(name)
            variables |= {} if text is None else {name: text}
    if script is None:
        return
    if given[2:]:  # source FILE ARGUMENTS
        reader.values.arguments = given[2:]
    outer_file, reader.values.sourced = reader.values.sourced, given[1]
    _read(reader, script)
    reader.values.arguments = arguments if given[2:] else reader.values.arguments
    reader.values.sourced = outer_file
    reader.over = "" if reader.over == "return" else reader.over


def _is_repeated(reader: Reader, node: Node, own: Mapping[str, str], given: Sequence[str]) -> bool:
    """Reads each of the commands of xargs or parallel; False for any other."""
    if given[0] == "xargs" and given[1:]:
        for each in repeated(reader, node, list(given[1:])):
            _run(reader, node, own, each)
        return True
    found = of_parallel(given[1:], reader) if given[0] == "parallel" else None
    if found is None:
        return False
    for script in found[1]:
        _nested(reader, script, ["parallel", *found[0]], own)
    return True


def _with_assigned(own: Mapping[str, str], given: Sequence[str]) -> tuple[Mapping[str, str], list[str]]:
    """(variables, words) with the assignments of evaluated words in front, as in `$ENV megatron sft`."""
    words_left = list(given)
    while words_left and ASSIGNMENT.fullmatch(words_left[0]):
        name, _, value = words_left.pop(0).partition("=")
        own = {**own, name: value}
    return own, words_left


def _call(reader: Reader, function: Node, given: list[str]) -> None:
    """A function with the arguments of its call."""
    body = function.child_by_field_name("body")
    if body is None or reader.depth >= MAX_DEPTH:
        return
    outer, reader.values.arguments = reader.values.arguments, given
    locals_of_caller, reader.locals = reader.locals, {}
    reader.depth += 1
    _statement(reader, body)
    reader.depth -= 1
    restore_outer(reader, reader.locals)
    reader.locals = locals_of_caller
    reader.over = "" if reader.over == "return" else reader.over
    reader.values.arguments = outer


def _nested(
    reader: Reader,
    script: str,
    before: Sequence[str],
    own: Mapping[str, str],
    arguments: list[str] | None = None,
    path: str | None = None,
) -> bool:
    """Reads the script of another shell with what it sees of what is known here; whether it had a command.

    Only `eval` sees more than exported variables. arguments: its `$1`, `$2`; None where they are not known.
    path: of its file.
    """
    inner = Reader(
        reader.values.copy(),
        reader.folder,
        dict(reader.functions),
        dict(reader.files),
        depth=reader.depth,
        skips=reader.skips,
    )
    if list(before[:1]) != ["eval"]:
        hidden = cleared(before, {*reader.exported, *reader.inherited})
        seen = {*reader.exported, *reader.inherited} - hidden
        inner.values.variables = {name: text for name, text in inner.values.variables.items() if name in seen}
        inner.values.arrays = {}
        inner.values.script = inner.values.sourced = path
        inner.exported, inner.inherited = reader.exported - hidden, reader.inherited - hidden
    else:
        inner.exported, inner.inherited = set(reader.exported), reader.inherited
    inner.values.variables |= own
    inner.values.arguments = arguments
    inner.values.file, inner.input = partial(read_file, inner), reader.input
    inner.behind = (*reader.behind, *before)
    inner.exported |= own.keys()
    _read(inner, script)
    reader.found += inner.found
    reader.skipped += inner.skipped
    reader.header += inner.header
    reader.remarks |= inner.remarks
    if list(before[:1]) == ["eval"]:
        reader.values, reader.exported = inner.values, inner.exported - own.keys() | reader.exported
    return bool(inner.found or inner.skipped)


STATEMENTS: Mapping[str, Callable[[Reader, Node], None]] = {
    "comment": _comment,
    "function_definition": _define,
    "variable_assignment": assign,
    "declaration_command": declare,
    "if_statement": lambda reader, node: branches.if_(reader, node, _statement),
    "case_statement": lambda reader, node: branches.case(reader, node, _statement),
    "list": lambda reader, node: branches.list_(reader, node, _statement),
    "for_statement": lambda reader, node: loops.for_(reader, node, _statement),
    "c_style_for_statement": lambda reader, node: loops.counted(reader, node, _statement),
    "while_statement": lambda reader, node: loops.while_(reader, node, _statement),
    "subshell": _subshell,
    "compound_statement": _group,
    "unset_command": lambda reader, node: unset(reader, listed_words(node.named_children, node, reader.values)),
    "pipeline": _pipeline,
    "redirected_statement": _redirected,
    "command": _command,
    "test_command": lambda reader, node: None,
}
