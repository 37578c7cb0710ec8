"""Words of a shell script with the values of its variables: quotes, `${NAME:-8}`, arrays, `$((2 * 4))`. Runs nothing.

What only a shell can evaluate, such as `$(hostname)` or a variable that the script does not set, stays in the word as
it is written, so that it is seen later.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from tree_sitter import Node

from megatron_operator.translate.shell import arithmetic, filters, folders
from megatron_operator.translate.shell.literal import kept, plain
from megatron_operator.translate.shell.nodes import is_evaluated, parsed, source
from megatron_operator.translate.shell.values import OF_THE_PLACE, Values, in_order
from megatron_operator.translate.shell.word import PARTS, Word, braced, cut, quoted

EXPANDED = ("simple_expansion", "expansion", "command_substitution", "arithmetic_expansion", "process_substitution")
QUOTED = ("string", "raw_string", "ansi_c_string", "translated_string")
DOCUMENTS = ("heredoc_redirect", "herestring_redirect")
NAME = re.compile(
    r"\$\{(?P<mark>[#!](?=\w))?(?P<name>\w+|[@*#?!])(?:\[(?P<index>[^\]]*)\])?(?P<rest>.*)\}"
    r"|\$(?P<bare>\w+|[@*#?!$])",
    re.DOTALL,
)
ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}
ESCAPED_BLANKS = re.compile(r"(?:\\[ \t\n])*")
PIECES, FIRST_PIECE = 64, 0xE100
"""How many pieces of a word with braces may be quoted or values, and the private character of the first."""


def words(node: Node, values: Values) -> list[str]:
    """The words that one word of a script becomes: none, one, or several of an array or of an unquoted value."""
    text = source(node)
    if node.type in ("word", "concatenation", "brace_expression") and not {"$", "`", "'", '"'} & set(text):
        return [_unescaped(each) for each in braced(text)]
    return [word for pieces in _alternatives(node) for word in _words_of(pieces, values)]


def _alternatives(node: Node) -> list[list[Node | str]]:
    """The pieces of a word, once for each word that its braces make."""
    parts = list(_parts(node))
    is_kept = [part.type in (*QUOTED, *EXPANDED) for part in parts]
    if len(parts) > PIECES or not any(
        "{" in source(part) for part, kept in zip(parts, is_kept, strict=True) if not kept
    ):
        return [list(parts)]
    text = "".join(chr(FIRST_PIECE + index) if is_kept[index] else source(part) for index, part in enumerate(parts))
    return [
        [
            parts[ord(each) - FIRST_PIECE] if ord(each[0]) in range(FIRST_PIECE, FIRST_PIECE + PIECES) else each
            for each in split
        ]
        for split in (_pieces(word) for word in braced(text))
    ]


def _pieces(text: str) -> list[str]:
    return [each for each in re.split(f"([{chr(FIRST_PIECE)}-{chr(FIRST_PIECE + PIECES - 1)}])", text) if each]


def _words_of(pieces: Iterable[Node | str], values: Values) -> list[str]:
    word = Word()
    for part in pieces:
        if isinstance(part, str):
            word.add(_unescaped(part))
            continue
        listed = _list(part, values)
        if listed is not None and part.type in QUOTED and _is_joined(source(part)):
            word.add(_between(values).join(listed))
        elif listed is not None:
            is_split = part.type not in QUOTED
            word.extend([each for text in listed for each in (PARTS.findall(text) if is_split else [text])])
        elif part.type in QUOTED:
            word.add(text_of(part, values))
        elif part.type in EXPANDED:
            operand = _quoted_operand(part, values)
            if operand is None:
                word.split(expanded(source(part), values))
            else:
                word.extend(operand)
        else:
            word.add(_unescaped(source(part)))
    word.end()
    return word.words


def _quoted_operand(node: Node, values: Values) -> list[str] | None:
    """The words of `${NAME:+--flag "$NAME"}` where those behind the sign are the value and have quotes, else None."""
    found = NAME.fullmatch(source(node))
    sign = re.match(r":?[-=+]", (found and found["rest"]) or "")
    if found is None or sign is None or found["mark"] or not {"'", '"'} & set(found["rest"]):
        return None
    value = _value(found["name"], found["index"], values)
    is_empty = value is None or (value == "" and sign[0].startswith(":"))
    if is_empty == sign[0].endswith("+"):
        return None
    command = parsed(f"x {found['rest'][sign.end() :]}\n").named_children[0]
    return listed_words(command.named_children[1:], command, values)


def listed_words(nodes: Iterable[Node], command: Node, values: Values) -> list[str]:
    """The words of a command; of `"a"\\$b` and `"a"\\ b` the parser makes two, with only escapes between them."""
    raw, given, end = command.text or b"", list[str](), -1
    for node in nodes:
        found = words(node, values)
        gap = raw[end - command.start_byte : node.start_byte - command.start_byte].decode() if end >= 0 else " "
        escaped = ESCAPED_BLANKS.match(gap)
        if given and escaped is not None and (escaped[0] or not gap):
            given[-1] += escaped[0].replace("\\\n", "").replace("\\", "")
            given[-1] += found.pop(0) if found and escaped[0] == gap else ""
        given += found
        end = node.end_byte
    return given


def _is_joined(text: str) -> bool:
    """Whether these are all elements as one text, where they are quoted: `${NAME[*]}` or `$*`."""
    return re.match(r'"?\$(?:\*|\{(?:\*|\w+\[\*\]))', text) is not None


def _between(values: Values) -> str:
    """What stands between the elements in such a text."""
    return values.variables.get("IFS", " ")[:1]


def text_of(node: Node, values: Values) -> str:
    """The text of a value: quoted, of an assignment or of a here-document; it stays one word."""
    text = source(node)
    if node.type == "raw_string":
        return kept(text[1:-1])
    if node.type == "ansi_c_string":
        escaped = re.sub(r"\\(.)", lambda found: ESCAPES.get(found[1], found[1]), text[2:-1], flags=re.DOTALL)
        return kept(escaped)
    if node.type == "string":
        return _spliced(node, values, 1, 1)
    if node.type == "translated_string":
        return "".join(text_of(child, values) for child in node.named_children)
    if node.type == "heredoc_body":
        return _spliced(node, values, 0, 0)
    if node.type in EXPANDED:
        return expanded(text, values)
    if node.type == "concatenation":
        return "".join(text_of(part, values) for part in node.children)
    return _unescaped(text)


def document_text(node: Node, values: Values) -> str:
    """The text of `<<EOF` (with values, unless EOF is quoted) or `<<<`."""
    if node.type == "herestring_redirect":
        return text_of(node.named_children[-1], values)
    body = next((child for child in node.named_children if child.type == "heredoc_body"), None)
    start = next((source(child) for child in node.named_children if child.type == "heredoc_start"), "")
    if body is None:
        return ""
    text = kept(source(body)) if {"'", '"', "\\"} & set(start) else text_of(body, values)
    return re.sub(r"(?m)^\t+", "", text) if source(node).startswith("<<-") else text


def expanded(text: str, values: Values) -> str:
    """The value of `$NAME`, `${NAME...}`, `$((...))` or of a simple `$(...)`; the text itself where none is known."""
    if text.startswith(("$((", "$[")):
        inner = text[3:-2] if text.startswith("$((") else text[2:-1]
        known = re.sub(r"\$\([^()]*\)", lambda found: expanded(found[0], values), inner)
        number = arithmetic.calculated(spread(known, values), values.variables)
        return text if number is None else str(number)
    if text.startswith(("$(", "`", "<(", ">(")):
        return _substituted(text, values)
    found = NAME.fullmatch(text)
    if found is None:
        return text
    name = found["name"] or found["bare"]
    value = _value(name, found["index"], values)
    if found["mark"] == "#":
        whole = values.arrays.get(name) if found["index"] in ("@", "*") else None
        return text if value is None else str(len(value if whole is None else whole))
    if found["mark"] == "!":
        if found["index"] in ("@", "*"):
            return " ".join(in_order(values.arrays.get(name, {})))
        value = None if value is None else _value(value, None, values)
    done = _modified(found["rest"] or "", value, values)
    return text if done is None else done


def _parts(node: Node) -> Iterator[Node]:
    """The pieces of a word; those of a concatenation may be nested."""
    if node.type != "concatenation":
        yield node
    else:
        for child in node.children:
            yield from _parts(child)


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", lambda found: "" if found[1] == "\n" else kept(found[1]), text, flags=re.DOTALL)


def _spliced(node: Node, values: Values, before: int, after: int) -> str:
    """The text between the node's quotes with its expansions replaced; literal pieces are no nodes of their own."""
    raw, position, pieces = node.text or b"", before, []
    literal = partial(_of_document, values=values) if node.type == "heredoc_body" else _literal
    for child in node.named_children:
        if child.type in EXPANDED:
            written = source(child).lstrip()  # the parser counts a blank in front of `${NAME}` to it
            start = child.end_byte - node.start_byte - len(written.encode())
            listed = _list(child, values)
            pieces += [
                literal(raw[position:start]),
                expanded(written, values)
                if listed is None
                else (_between(values) if _is_joined(written) else " ").join(listed),
            ]
            position = child.end_byte - node.start_byte
    return "".join([*pieces, literal(raw[position : len(raw) - after])])


def _literal(raw: bytes) -> str:
    return re.sub(r"\\([\"\\$`\n])", lambda found: kept(found[1].strip("\n")), raw.decode())


def _of_document(raw: bytes, values: Values) -> str:
    """Text of a here-document, where the parser leaves `$1` in it."""
    text = raw.decode()
    if values.arguments is not None:
        text = re.sub(r"(?<!\\)\$[1-9@*]", lambda found: expanded(found[0], values), text)
    return _literal(text.encode())


def _list(node: Node, values: Values) -> list[str] | None:
    """The words that `${NAME[@]}`, `$@` or `"${@:3}"` stand for, None for anything else or what is not known."""
    found = NAME.fullmatch(source(node).strip('" '))
    if found is None or found["mark"] == "#":
        return None
    name, index, rest = found["name"] or found["bare"], found["index"], found["rest"] or ""
    is_own = name in ("@", "*")
    listed = values.arguments if is_own else values.listed(name) if index in ("@", "*") else None
    if found["mark"]:
        return in_order(values.arrays[name]) if listed is not None and not is_own else None
    if listed is None or not rest:
        return listed
    part = re.fullmatch(r":\s*(\d+|(?<=\s)-\d+)(?::(\d+))?", rest)
    if part is None:
        changed = [] if rest[:1] in ":-=+?" else [_modified(rest, each, values) for each in listed]
        return [each for each in changed if each is not None] if changed else None
    first = int(part[1]) - (is_own and int(part[1]) > 0)
    return listed[first:][: int(part[2])] if part[2] else listed[first:]


def spread(text: str, values: Values) -> str:
    """The text with the values of its variables."""
    return re.sub(r"\$\{[^{}]*\}|\$\w+", lambda found: expanded(found[0], values), text)


def key_of(values: Values, name: str, index: str) -> str:
    """The key that an index such as `1`, `$i` or `i + 1` of the array means."""
    text = spread(index.strip("\"'"), values)
    number = None if name in values.tables else arithmetic.calculated(text, values.variables)
    if number is not None and number < 0:
        number += 1 + max(map(int, values.arrays.get(name, {})), default=-1)
    return text if number is None else str(number)


def _value(name: str, index: str | None, values: Values) -> str | None:
    """The value of a variable, of an element, or of an argument. None: not known."""
    values.used.add(name)
    if name in OF_THE_PLACE and name not in values.variables:
        return OF_THE_PLACE[name](values)
    if name.isdigit() and values.arguments is not None and name != "0":
        number = int(name) - 1
        return values.arguments[number] if number < len(values.arguments) else ""
    if name == "#" and values.arguments is not None:
        return str(len(values.arguments))
    if name in ("@", "*"):
        return None if values.arguments is None else " ".join(values.arguments)
    if name in values.arrays:
        if index in ("@", "*"):
            return " ".join(values.listed(name) or ())
        place = key_of(values, name, index or "0")
        return values.arrays[name].get(place, "") if is_evaluated(place) else None
    return values.variables.get(name)


def _modified(rest: str, value: str | None, values: Values) -> str | None:
    """The value after `:-default`, `%suffix`, `/from/to` and the like. None: unknown."""
    if rest == "@Q" and value is not None:
        return kept(quoted(value)) if is_evaluated(value) else f'"{value}"'
    found = re.match(r":?[-=+?]|##?|%%?|//?|\^\^?|,,?|:", rest)
    if found is None:
        return value if not rest else None
    kind, operand = found[0], rest[found.end() :]
    if kind[-1] in "-=+?" and kind[-1:] != "":
        is_empty = value is None or (value == "" and kind.startswith(":"))
        if kind.endswith("+"):
            return "" if is_empty else _inner(operand, values)
        return value if not is_empty else _inner(operand, values) if kind[-1] in "-=" else None
    return None if value is None else cut(kind, _inner(operand, values), value)


def _inner(operand: str, values: Values) -> str:
    """The text of a default or a pattern, which may hold variables and quotes itself."""
    if operand[:1] == "'" and operand[-1:] == "'":
        return kept(operand[1:-1])
    inner = operand[1:-1] if operand[:1] == '"' and operand[-1:] == '"' and len(operand) > 1 else operand
    node = parsed(f'"{inner}"').named_children
    strings = [
        found
        for each in node
        for found in (
            each,
            *each.named_children,
            *(deep for child in each.named_children for deep in child.named_children),
        )
        if found.type == "string"
    ]
    return text_of(strings[0], values) if strings else inner


def _substituted(text: str, values: Values) -> str:
    """What `$(echo ...)`, `$(seq 3 | head -n 1)` or `$(cd folder && pwd)` writes; others stay as they are."""
    inner = parsed(text[2:-1] if text.startswith("$(") else text[1:-1])
    statements = [each for child in inner.named_children for each in _in_turn(child)]
    there = None if text.startswith(("<(", ">(")) or not statements else _moved(statements[:-1], values)
    if there is None:
        return text
    unknown = filters.printed(_given(statements[-1], there)) if statements[-1].type == "command" else None
    if unknown is not None:
        return unknown
    written: str | None = None
    for stage in statements[-1].named_children if statements[-1].type == "pipeline" else statements[-1:]:
        written = written_by(stage, there, written)
        if written is None:
            return text
    return kept((written or "").rstrip("\n"))


def _in_turn(node: Node) -> list[Node]:
    """The commands of `a && b`; anything else by itself."""
    if node.type != "list" or not any(child.type == "&&" for child in node.children):
        return [node]
    return [each for child in node.named_children for each in _in_turn(child)]


def _moved(statements: Sequence[Node], values: Values) -> Values | None:
    """The values after these statements, all of which are `cd`; None after any other."""
    there = values.copy()
    for each in statements:
        command = each.named_children[0] if each.type == "redirected_statement" else each
        given = [word for child in command.named_children for word in words(child, values)]
        if command.type != "command" or given[:1] != ["cd"]:
            return None
        there.folder = folders.changed(there.folder, given[1:])
    return there


def _given(command: Node, values: Values) -> list[str]:
    """The words of a command without its files."""
    return [
        word
        for child in command.named_children
        if child.type not in ("file_redirect", *DOCUMENTS)
        for word in words(child.named_children[0] if child.type == "command_name" else child, values)
    ]


def written_by(node: Node, values: Values, text: str | None) -> str | None:
    """What a command of `filters` writes for this input; None for any other, and where a word is not known."""
    redirect = next((each for each in (node, *node.named_children) if each.type == "file_redirect"), None)
    target = None if redirect is None else redirect.child_by_field_name("destination") or redirect.named_children[-1]
    if redirect is not None and target is not None:
        if not source(redirect).startswith("<"):
            return None
        text = values.file(plain(text_of(target, values)))
    document = next((each for each in node.named_children if each.type in DOCUMENTS), None)
    if document is not None:
        written = document_text(document, values)
        if not is_evaluated(written):
            return None
        text = plain(written)
    if node.type in ("file_redirect", "redirected_statement") and node.named_children[0].type != "command":
        return text
    command = node.named_children[0] if node.type == "redirected_statement" else node
    if command.type != "command":
        return None
    given = _given(command, values)
    if not given or not all(map(is_evaluated, given)):
        return None
    read = [*map(plain, given)]
    path = folders.written(read, values.folder)
    return filters.output(read, text, values.file) if path is None else path
