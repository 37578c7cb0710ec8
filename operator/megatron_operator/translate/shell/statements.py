"""The commands of a shell script with what is known of their variables. Runs nothing.

Functions are followed where they are called, loops for each of their values, `case` and `if` into the branch that the
script's own values decide; of a condition that they do not decide every branch is read, which is reported. Files that
the script sources, or writes itself with a here-document, are read. What is not understood is reported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from tree_sitter import Node

from megatron_operator.translate.programs import ASSIGNMENT, passed_on, program, reads_script, script_in
from megatron_operator.translate.shell import branches, loops
from megatron_operator.translate.shell.builtins import BUILTINS, calculate, read_file, repeated, script_file
from megatron_operator.translate.shell.literal import kept, plain
from megatron_operator.translate.shell.parallel import of_parallel
from megatron_operator.translate.shell.state import Reader, Script
from megatron_operator.translate.shell.words import (
    Values,
    appended,
    document_text,
    parsed,
    source,
    text_of,
    words,
    written_by,
)

EXPORTING = ("export", "declare -x", "typeset -x")
HEADER = re.compile(r"#(SBATCH|BSUB|PBS|COBALT|\$)\s+(?P<option>.+)")
KEYED = re.compile(r"\[(?P<key>[^\]]+)\]=(?P<value>.*)", re.DOTALL)
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
    reader.values.file = partial(read_file, reader)
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
    script = plain(script)
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


def _assign(reader: Reader, node: Node) -> None:
    """`NAME=value`, `NAME+=value`, `NAME=(...)`, `NAME[0]=value`."""
    name, value = node.child_by_field_name("name"), node.child_by_field_name("value")
    if name is None:
        return
    adds = any(child.type == "+=" for child in node.children)
    values, key = reader.values, source(name)
    if value is not None and value.type == "array":
        listed = _elements(value, key, values)
        values.arrays[key] = appended(values.arrays.get(key, {}), listed) if adds else listed
        values.variables.pop(key, None)
        return
    text = "" if value is None else text_of(value, values)
    if name.type == "subscript":
        base, _, index = key.removesuffix("]").partition("[")
        array, place = values.arrays.setdefault(base, {}), values.key(base, index)
        array[place] = array.get(place, "") + text if adds else text
        return
    values.arrays.pop(key, None)
    values.variables[key] = values.variables.get(key, "") + text if adds else text


def _elements(node: Node, name: str, values: Values) -> dict[str, str]:
    """The elements of `(a b)` by their number, of `([key]=value)` by their key."""
    found: dict[str, str] = {}
    for child in (each for each in node.named_children if each.type != "comment"):
        keyed = KEYED.fullmatch(source(child))
        if keyed is None:
            found = appended(found, dict(enumerate(words(child, values))))
        else:
            value = parsed(f"x={keyed['value']}\n").named_children[0].child_by_field_name("value")
            found[values.key(name, keyed["key"])] = "" if value is None else text_of(value, values)
    return found


def _declare(reader: Reader, node: Node) -> None:
    """`export NAME=value`, `export NAME`, `declare -x NAME=value`, `local NAME=value`."""
    if re.match(r"(declare|typeset|local)\s+-\w*A", source(node)):
        reader.values.tables |= {source(c.child_by_field_name("name") or c) for c in node.named_children}
    for child in node.named_children:
        if child.type == "variable_assignment":
            _assign(reader, child)
        for word in words(child, reader.values) if child.type in ("command_substitution", "concatenation") else ():
            if (found := ASSIGNMENT.fullmatch(word)) is not None:  # export $(cat .env | xargs)
                reader.values.variables[found["name"]] = found["value"]
                reader.exported.add(found["name"])
        named = child.child_by_field_name("name") or child
        if source(node).startswith(EXPORTING) and named.type == "variable_name":
            reader.exported.add(source(named))


def _subshell(reader: Reader, node: Node) -> None:
    """`( ... )`: what it sets and where it ends is its own."""
    values, exported, over = reader.values, set(reader.exported), reader.over
    reader.values = values.copy()
    _statements(reader, node)
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
            _statement(reader, stage)
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
    end = -1
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
            found = words(child, reader.values)
            if given and found and child.start_byte == end:  # the parser takes `"a"\$b` for two words
                given[-1] += found.pop(0)
            given += found
        end = child.end_byte
    return own, given


def _run(reader: Reader, node: Node, own: Mapping[str, str], given: list[str]) -> None:
    """One simple command: a function or builtin of the shell, a script of its own, or a program."""
    if not given:
        reader.values.variables |= own
        return
    own, given = _with_assigned(own, given)
    if not given or _is_repeated(reader, node, own, given):
        return
    builtin = BUILTINS.get(given[0])
    if given[0] in reader.functions:
        _call(reader, reader.functions[given[0]], given[1:])
    elif builtin is not None:
        script = builtin(reader, node, given)
        if script is not None:
            _read(reader, script)
            reader.over = "" if reader.over == "return" else reader.over
    elif (file := script_file(reader, given)) is not None:
        _nested(reader, file[0], file[2], own, file[1])
    else:
        before, inner = script_in(given)
        if not inner or not _nested(reader, inner, before or given[:1], {**own, **passed_on(before)}):
            reader.add(own, given)


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
    reader.depth += 1
    _statement(reader, body)
    reader.depth -= 1
    reader.over = "" if reader.over == "return" else reader.over
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
    inner.values.file, inner.input = partial(read_file, inner), reader.input
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
    "if_statement": lambda reader, node: branches.if_(reader, node, _statement),
    "case_statement": lambda reader, node: branches.case(reader, node, _statement),
    "list": lambda reader, node: branches.list_(reader, node, _statement),
    "for_statement": lambda reader, node: loops.for_(reader, node, _statement),
    "c_style_for_statement": lambda reader, node: loops.counted(reader, node, _statement),
    "while_statement": lambda reader, node: loops.while_(reader, node, _statement),
    "subshell": _subshell,
    "compound_statement": _group,
    "pipeline": _pipeline,
    "redirected_statement": _redirected,
    "command": _command,
    "test_command": lambda reader, node: None,
}
