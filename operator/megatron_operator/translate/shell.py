"""The commands of a shell script with what is known of their environment. Runs nothing and follows no branch.

Understood are line continuations, comments, quotes, variables, arrays (`+=` too), defaults (`${NAME:-8}`), `export`,
and the script of `bash -c`. What a here-document holds is text, no command. What only a shell can evaluate, such as
`$(hostname)`, stays in the word as it is written, so that it is seen later.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

PIECE = re.compile(
    r"""
    (?P<space>(?:[ \t\r]|\\\r?\n)+)
  | (?P<comment>(?<![^\s;&|(])\#[^\n]*)
  | (?P<redirect>\d*(?:>>?|<)\ *(?:&\d|[^\s;&|]+)|&>>?\ *[^\s;&|]+)
  | (?P<end>\n|;|&&|\|\||\||&)
  | (?P<open>\()
  | (?P<close>\))
  | (?P<single>'[^']*')
  | (?P<double>"(?:[^"\\]|\\.)*")
  | (?P<escaped>\\.)
  | (?P<evaluated>\$\([^)]*\)|`[^`]*`)
  | (?P<variable>\$\{[^}]*\}|\$\w+|\$[@*])
  | (?P<plain>[^\s'"\\$;&|()<>`]+|.)
    """,
    re.VERBOSE | re.DOTALL,
)
VARIABLE = re.compile(r"\$\{(?P<braced>\w+)(?:\[[@*]\])?(?::?[-=](?P<default>[^}]*))?\}|\$(?P<bare>\w+)")
HERE_DOCUMENT = re.compile(
    r"(?P<line>^[^\n#]*<<-?[ \t]*(?P<quote>['\"]?)(?P<end>\w+)(?P=quote)[^\n]*\n)(?:.*?\n)??[ \t]*(?P=end)[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
OWN_ARGUMENTS = re.compile(r"\$(?:[@*]|\{[@*][^}]*\})")
SHELLS = ("bash", "sh", "zsh", "dash")
ASSIGNMENT = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<value>.*)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """One simple command: its words, and the variables that were set before or in front of it."""

    words: tuple[str, ...]
    environment: Mapping[str, str]


@dataclass
class _Word:
    """The word that is being read; `is_there` tells an empty one in quotes from none."""

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


def invocations(script: str) -> list[Invocation]:
    """Every simple command of the script, in its order."""
    known: dict[str, str] = {}
    arrays: dict[str, list[str]] = {}
    found = []
    script = HERE_DOCUMENT.sub(lambda match: match["line"], script)
    for words, array in _statements(script, known, arrays):
        if array is not None:
            name = array.removesuffix("+")
            arrays[name] = [*arrays.get(name, []), *words] if array != name else words
            continue
        own, rest = _assignments(words)
        if not rest or rest[0] == "export":
            known |= own | _assignments(rest[1:])[0]
        else:
            environment = {**known, **own}
            inner = [
                Invocation(words=each.words, environment={**environment, **each.environment})
                for each in invocations(_script_in(rest))
            ]
            found += inner or [Invocation(words=tuple(rest), environment=environment)]
    return found


def without_own_arguments(words: list[str]) -> tuple[list[str], bool]:
    """(the words without `$@`, the arguments of the script or function that runs them; whether it was among them)."""
    kept = [word for word in words if not OWN_ARGUMENTS.fullmatch(word)]
    return kept, len(kept) != len(words)


def _script_in(words: list[str]) -> str:
    """The script of `bash -c SCRIPT`, also behind another program such as srun; "" where there is none."""
    for index, word in enumerate(words[:-2]):
        option = words[index + 1]
        if word.rpartition("/")[2] in SHELLS and re.fullmatch(r"-[a-z]*c", option):
            return words[index + 2]
    return ""


def _statements(
    script: str, known: Mapping[str, str], arrays: Mapping[str, list[str]]
) -> Iterator[tuple[list[str], str | None]]:
    """(words, name of the array that they are assigned to or None) of each statement."""
    word, array = _Word(), None
    for piece in PIECE.finditer(script):
        kind, text = piece.lastgroup, piece.group()
        if kind == "open" and word.text.endswith("="):
            array, word = word.text[:-1], _Word()
        elif kind in ("close", "end") and (array is None or kind == "close"):
            word.end()
            if word.words:
                yield word.words, array
            array, word = None, _Word()
        elif kind in ("space", "comment", "redirect", "open", "end"):
            word.end()
        else:
            _take(word, kind or "", text, known, arrays)
    word.end()
    if word.words:
        yield word.words, array


def _take(word: _Word, kind: str, text: str, known: Mapping[str, str], arrays: Mapping[str, list[str]]) -> None:
    """Adds one piece of a word; an array or an unquoted variable may become several words."""
    name = _array_name(text, arrays)
    if name is not None:
        word.end()
        word.words += arrays[name]
    elif kind == "single":
        word.add(text[1:-1])
    elif kind == "double":
        word.add(_expanded(re.sub(r'\\(["\\$`])', r"\1", text[1:-1]), known))
    elif kind == "escaped":
        word.add(text[1:])
    elif kind == "variable":
        _take_split(word, _expanded(text, known))
    else:
        word.add(text)


def _array_name(text: str, arrays: Mapping[str, list[str]]) -> str | None:
    """The array that `${NAME[@]}` or `"${NAME[@]}"` stands for."""
    found = re.fullmatch(r'"?\$\{(\w+)\[[@*]\]\}"?', text)
    return found[1] if found and found[1] in arrays else None


def _take_split(word: _Word, text: str) -> None:
    first, *others = text.split() or [""]
    if first:
        word.add(first)
    for other in others:
        word.end()
        word.add(other)


def _expanded(text: str, known: Mapping[str, str]) -> str:
    """The text with the variables that are known or have a default."""

    def value(found: re.Match[str]) -> str:
        name = found["braced"] or found["bare"]
        if name in known:
            return known[name]
        return found[0] if found["default"] is None else _expanded(found["default"], known)

    return VARIABLE.sub(value, text)


def _assignments(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """The assignments in front, and the words after them."""
    values: dict[str, str] = {}
    for index, word in enumerate(words):
        found = ASSIGNMENT.fullmatch(word)
        if not found:
            return values, words[index:]
        values[found["name"]] = found["value"]
    return values, []
