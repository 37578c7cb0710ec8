"""One word of a script as text: put together, split at blanks, multiplied by braces, cut by patterns."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

PARTS = re.compile(r"(?:\$\((?:[^()]|\([^()]*\))*\)|`[^`]*`|\$\{[^{}]*\}|\S)+")
"""The words of an unquoted value; what is left to a shell stays one."""
RANGE = re.compile(r"(?P<before>[^{}]*)\{(?P<first>-?\d{1,4})\.\.(?P<last>-?\d{1,4})\}(?P<after>[^{}]*)")
BRACES = re.compile(r"(?P<before>[^{}]*)\{(?P<inner>[^{}\s]*,[^{}\s]*)\}(?P<after>.*)")


@dataclass
class Word:
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
        if text[:1].isspace():
            self.end()
        self.extend(PARTS.findall(text))
        if text[-1:].isspace():
            self.end()

    def extend(self, words: Sequence[str]) -> None:
        """Several words: the first continues the one being read, the last may be continued."""
        for index, each in enumerate(words):
            if index:
                self.end()
            self.add(each)


def braced(text: str) -> list[str]:
    """The words of `a{b,c}` and `{1..3}`; a pattern of files stays one."""
    if (found := RANGE.fullmatch(text)) is not None:
        first, last = int(found["first"]), int(found["last"])
        counted = range(first, last + 1) if first <= last else range(first, last - 1, -1)
        width = len(found["first"]) if found["first"].startswith("0") and found["first"] != "0" else 0
        return [f"{found['before']}{number:0{width}d}{found['after']}" for number in counted]
    found = BRACES.fullmatch(text)
    if found is None or text.startswith("{") and text.endswith("}") and ":" in text:
        return [text]
    return [each for part in found["inner"].split(",") for each in braced(found["before"] + part + found["after"])]


def _replaced(value: str, operand: str, *, count: int) -> str:
    """The value with `what/by` replaced; `#what` is one at its start, `%what` one at its end."""
    what, _, by = operand.partition("/")
    place = what[:1] if what[:1] in ("#", "%") and count == 1 else ""
    sought = what.removeprefix(place).replace("\0", "/").replace("[^", "[!")
    plain = fnmatch.translate(sought).removesuffix(r"\Z").removesuffix(r"\z") if sought else ""
    pattern = {"#": rf"\A{plain}", "%": rf"{plain}\Z"}.get(place, plain)
    if not sought and not place:
        return value
    return re.sub(pattern, lambda _: by.replace("\0", "/"), value, count=count)


def cut(kind: str, operand: str, value: str) -> str | None:
    """A known value without its prefix or suffix, with a part replaced, in other case, or a part of it."""
    if kind in ("#", "##", "%", "%%"):
        sizes = range(len(value) + 1)
        cuts = [
            (value[:size], value[size:]) if kind[0] == "#" else (value[len(value) - size :], value[: len(value) - size])
            for size in sizes
        ]
        fitting = [left for part, left in cuts if fnmatch.fnmatchcase(part, operand.replace("[^", "[!"))]
        return value if not fitting else fitting[-1 if len(kind) == 2 else 0]
    if kind in ("/", "//"):
        return _replaced(value, re.sub(r"\\/", "\0", operand), count=0 if kind == "//" else 1)
    if kind == ":":
        part = re.fullmatch(r"\s*(\d+|(?<=\s)-\d+)(?::(-?\d+))?", operand)
        return None if part is None else value[int(part[1]) :][: int(part[2]) if part[2] else None]
    changed = str.upper if kind[0] == "^" else str.lower
    return changed(value) if len(kind) == 2 else changed(value[:1]) + value[1:]


def escaped(value: str) -> str:
    """The value as `printf %q` writes it, which a shell reads as one word."""
    if re.search(r"[\x00-\x1f\x7f]", value):
        codes = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\", "'": "\\'"}
        return "$'" + "".join(codes.get(each, each) for each in value) + "'"
    return re.sub(r"[^\w@%+\-./:=~#\x80-\U0010ffff]|^[~#]", r"\\\g<0>", value) or "''"


def quoted(value: str) -> str:
    """The value as `${NAME@Q}` writes it."""
    return escaped(value) if re.search(r"[\x00-\x1f\x7f]", value) else "'" + value.replace("'", "'\\''") + "'"
