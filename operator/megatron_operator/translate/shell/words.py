"""Words of a shell script with the values of its variables: quotes, `${NAME:-8}`, arrays, `$((2 * 4))`. Runs nothing.

What only a shell can evaluate, such as `$(hostname)` or a variable that the script does not set, stays in the word as
it is written, so that it is seen later.
"""

from __future__ import annotations

import ast
import fnmatch
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import tree_sitter_bash
from tree_sitter import Language, Node, Parser

_PARSER = Parser(Language(tree_sitter_bash.language()))
EXPANDED = ("simple_expansion", "expansion", "command_substitution", "arithmetic_expansion", "process_substitution")
QUOTED = ("string", "raw_string", "ansi_c_string", "translated_string")
NAME = re.compile(
    r"\$\{(?P<size>#)?(?P<name>\w+|[@*#?!])(?:\[(?P<index>[^\]]*)\])?(?P<rest>.*)\}|\$(?P<bare>\w+|[@*#?!$])", re.DOTALL
)
PARTS = re.compile(r"(?:\$\([^()]*\)|`[^`]*`|\$\{[^{}]*\}|\S)+")
"""The words of an unquoted value; what is left to a shell stays one."""
ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}
BRACES = re.compile(r"(?P<before>[^{}]*)\{(?P<inner>[^{}\s]*,[^{}\s]*)\}(?P<after>.*)")
INTEGERS: dict[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,
    ast.Mod: operator.mod,
}
MAX_COUNT = 64


def parsed(script: str) -> Node:
    """The syntax tree of a script."""
    return _PARSER.parse(script.encode()).root_node


def source(node: Node) -> str:
    """The node as it is written."""
    return (node.text or b"").decode()


@dataclass
class Values:
    """What is known at a place of a script. arguments: $1, $2 ...; None where whoever calls it decides."""

    variables: dict[str, str] = field(default_factory=dict)
    arrays: dict[str, list[str]] = field(default_factory=dict)
    arguments: list[str] | None = None
    used: set[str] = field(default_factory=set)
    """Names of the variables whose values stand in words."""

    def copy(self) -> Values:
        """The same, to be changed apart."""
        arrays = {name: list(each) for name, each in self.arrays.items()}
        return Values(dict(self.variables), arrays, self.arguments, self.used)


@dataclass
class _Word:
    """The word being read; `is_there` distinguishes an empty quoted word from none."""

    text: str = ""
    is_there: bool = False
    words: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        self.text += text
        self.is_there = True

    def end(self) -> None:
        if self.is_there:
            self.words.append(self.text)
        self.text, self.is_there = "", False

    def split(self, text: str) -> None:
        """An unquoted value: each of its words is one of the command."""
        parts = PARTS.findall(text)
        if parts and text[:1].isspace():
            self.end()
        for index, part in enumerate(parts):
            if index:
                self.end()
            self.add(part)


def words(node: Node, values: Values) -> list[str]:
    """The words that one word of a script becomes: none, one, or several of an array or of an unquoted value."""
    text = source(node)
    if node.type in ("word", "concatenation", "brace_expression") and not {"$", "`", "'", '"'} & set(text):
        return [_unescaped(each) for each in braced(text)]
    word = _Word()
    for part in _parts(node):
        listed = _list(part, values)
        if listed is not None:
            word.end()
            word.words += listed
        elif part.type in QUOTED:
            word.add(text_of(part, values))
        elif part.type in EXPANDED:
            found = expanded(source(part), values)
            word.split(found)
        else:
            word.add(_unescaped(source(part)))
    word.end()
    return word.words


def text_of(node: Node, values: Values) -> str:
    """The text of a value: quoted, of an assignment or of a here-document; it stays one word."""
    text = source(node)
    if node.type == "raw_string":
        return text[1:-1]
    if node.type == "ansi_c_string":
        return re.sub(r"\\(.)", lambda found: ESCAPES.get(found[1], found[1]), text[2:-1], flags=re.DOTALL)
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


def expanded(text: str, values: Values) -> str:
    """The value of `$NAME`, `${NAME...}`, `$((...))` or of a simple `$(...)`; the text itself where none is known."""
    if text.startswith("$(("):
        return _calculated(text, values)
    if text.startswith(("$(", "`", "<(", ">(")):
        return _substituted(text, values)
    found = NAME.fullmatch(text)
    if found is None:
        return text
    name = found["name"] or found["bare"]
    value = _value(name, found["index"], values)
    if found["size"]:
        return text if value is None else str(len(values.arrays.get(name, value)))
    done = _modified(found["rest"] or "", value, values)
    return text if done is None else done


def braced(text: str) -> list[str]:
    """The words of `a{b,c}`; a pattern of files stays one."""
    found = BRACES.fullmatch(text)
    if found is None or text.startswith("{") and text.endswith("}") and ":" in text:
        return [text]
    return [each for part in found["inner"].split(",") for each in braced(found["before"] + part + found["after"])]


def is_evaluated(text: str) -> bool:
    """Whether nothing in it is left to a shell."""
    return not re.search(r"\$[\w@*#({]|`", text)


def _parts(node: Node) -> Iterator[Node]:
    """The pieces of a word; those of a concatenation may be nested."""
    if node.type != "concatenation":
        yield node
    else:
        for child in node.children:
            yield from _parts(child)


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", lambda found: "" if found[1] == "\n" else found[1], text, flags=re.DOTALL)


def _spliced(node: Node, values: Values, before: int, after: int) -> str:
    """The text between the node's quotes with its expansions replaced; literal pieces are no nodes of their own."""
    raw, position, pieces = node.text or b"", before, []
    for child in node.named_children:
        if child.type in EXPANDED:
            start = child.start_byte - node.start_byte
            listed = _list(child, values)
            pieces += [
                _literal(raw[position:start]),
                expanded(source(child), values) if listed is None else " ".join(listed),
            ]
            position = child.end_byte - node.start_byte
    return "".join([*pieces, _literal(raw[position : len(raw) - after])])


def _literal(raw: bytes) -> str:
    return re.sub(r"\\([\"\\$`\n])", lambda found: found[1].strip("\n"), raw.decode())


def _list(node: Node, values: Values) -> list[str] | None:
    """The words that `${NAME[@]}`, `$@` or `"${@:3}"` stand for, None for anything else or what is not known."""
    found = NAME.fullmatch(source(node).strip('"'))
    if found is None or found["size"]:
        return None
    name, index, rest = found["name"] or found["bare"], found["index"], found["rest"] or ""
    is_own = name in ("@", "*")
    listed = values.arguments if is_own else values.arrays.get(name) if index in ("@", "*") else None
    if listed is None or not rest:
        return listed
    part = re.fullmatch(r":\s*(\d+)(?::(\d+))?", rest)
    if part is None:
        return None
    first = int(part[1]) - is_own
    return listed[first:][: int(part[2])] if part[2] else listed[first:]


def _value(name: str, index: str | None, values: Values) -> str | None:
    """The value of a variable, of an element, or of an argument. None: not known."""
    values.used.add(name)
    if name.isdigit() and values.arguments is not None and name != "0":
        number = int(name) - 1
        return values.arguments[number] if number < len(values.arguments) else ""
    if name == "#" and values.arguments is not None:
        return str(len(values.arguments))
    if name in ("@", "*"):
        return None if values.arguments is None else " ".join(values.arguments)
    if name in values.arrays:
        listed = values.arrays[name]
        if index in ("@", "*"):
            return " ".join(listed)
        number = int(index) if index and index.isdigit() else 0
        return listed[number] if number < len(listed) else ""
    return values.variables.get(name)


def _modified(rest: str, value: str | None, values: Values) -> str | None:
    """The value after `:-default`, `%suffix`, `/from/to` and the like. None: unknown."""
    found = re.match(r":?[-=+?]|##?|%%?|//?|\^\^?|,,?|:", rest)
    if found is None:
        return value if not rest else None
    kind, operand = found[0], rest[found.end() :]
    if kind[-1] in "-=+?" and kind[-1:] != "":
        is_empty = value is None or (value == "" and kind.startswith(":"))
        if kind.endswith("+"):
            return "" if is_empty else _inner(operand, values)
        return value if not is_empty else _inner(operand, values) if kind[-1] in "-=" else None
    return None if value is None else _cut(kind, _inner(operand, values), value)


def _cut(kind: str, operand: str, value: str) -> str | None:
    """A known value without its prefix or suffix, with a part replaced, in other case, or a part of it."""
    if kind in ("#", "##", "%", "%%"):
        sizes = range(len(value) + 1)
        cuts = [
            (value[:size], value[size:]) if kind[0] == "#" else (value[len(value) - size :], value[: len(value) - size])
            for size in sizes
        ]
        fitting = [left for part, left in cuts if fnmatch.fnmatchcase(part, operand)]
        return value if not fitting else fitting[-1 if len(kind) == 2 else 0]
    if kind in ("/", "//"):
        sought, _, put = re.sub(r"\\/", "\0", operand).partition("/")
        pattern = re.compile(fnmatch.translate(sought.replace("\0", "/")).removesuffix(r"\Z").removesuffix(r"\z"))
        return pattern.sub(lambda _: put.replace("\0", "/"), value, count=0 if kind == "//" else 1)
    if kind == ":":
        part = re.fullmatch(r"\s*(\d+)(?::(\d+))?", operand)
        return None if part is None else value[int(part[1]) :][: int(part[2]) if part[2] else None]
    changed = str.upper if kind[0] == "^" else str.lower
    return changed(value) if len(kind) == 2 else changed(value[:1]) + value[1:]


def _inner(operand: str, values: Values) -> str:
    """The text of a default or a pattern, which may hold variables and quotes itself."""
    if operand[:1] == "'" and operand[-1:] == "'":
        return operand[1:-1]
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


def _calculated(text: str, values: Values) -> str:
    """The number of `$((8 * N))` of whole numbers."""
    names = re.sub(r"\$?\{?\b([A-Za-z_]\w*)\b\}?", lambda found: values.variables.get(found[1], found[0]), text[3:-2])
    try:
        return str(_integer(ast.parse(names.strip(), mode="eval").body))
    except (SyntaxError, ValueError, ZeroDivisionError):
        return text


def _integer(node: ast.AST) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in INTEGERS:
        return INTEGERS[type(node.op)](_integer(node.left), _integer(node.right))
    raise ValueError(node)


def _substituted(text: str, values: Values) -> str:
    """What `$(echo ...)`, `$(seq 3)`, `$(basename X)` or `$(dirname X)` writes; others stay as they are."""
    inner = text[2:-1] if text.startswith("$(") else text[1:-1]
    commands = [node for node in parsed(inner).named_children if node.type == "command"]
    if len(commands) != 1 or source(commands[0]).strip() != inner.strip():
        return text
    name, *given = [
        word
        for child in commands[0].named_children
        for word in words(child.named_children[0] if child.type == "command_name" else child, values)
    ]
    written = COMMANDS[name](given) if name in COMMANDS and all(map(is_evaluated, given)) else None
    return text if written is None else written


def _sequence(given: list[str]) -> str | None:
    if not 1 <= len(given) <= 3 or not all(re.fullmatch(r"-?\d+", each) for each in given):
        return None
    first, step, last = {1: (1, 1, int(given[-1]))}.get(len(given)) or (
        int(given[0]),
        int(given[1]) if len(given) == 3 else 1,
        int(given[-1]),
    )
    counted = range(first, last + (1 if step > 0 else -1), step) if step else range(0)
    return " ".join(map(str, counted)) if len(counted) <= MAX_COUNT else None


COMMANDS: dict[str, Callable[[list[str]], str | None]] = {
    "echo": lambda given: " ".join(word for word in given if word not in ("-n", "-e")),
    "seq": _sequence,
    "basename": lambda given: (
        given[0].rstrip("/").rpartition("/")[2].removesuffix(given[1] if given[1:] else "") if given else None
    ),
    "dirname": lambda given: (given[0].rstrip("/").rpartition("/")[0] or ".") if given else None,
}
