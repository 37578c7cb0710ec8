"""GNU parallel: one command for each combination of the values behind `:::`, of files (`::::`) or of its input."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import product

from megatron_operator.translate.shell.builtins import read_file
from megatron_operator.translate.shell.literal import plain
from megatron_operator.translate.shell.state import Reader

MAX_COMMANDS = 64
SOURCES = (":::", "::::", ":::+", "::::+")
WITH_VALUE = frozenset(
    ("j", "jobs", "P", "max-procs", "S", "sshlogin", "slf", "sshloginfile", "N", "n", "max-args", "L", "I", "a")
    + ("arg-file", "C", "colsep", "d", "delimiter", "joblog", "results", "res", "tmpdir", "timeout", "retries", "delay")
    + ("workdir", "wd", "env", "load", "nice", "memfree", "halt", "tagstring", "shuf", "basefile", "bf", "return")
)
PLACE = re.compile(r"\{(?P<number>\d*)(?P<part>|\.|/|//|/\.|#)\}")


def of_parallel(given: Sequence[str], reader: Reader) -> tuple[list[str], list[str]] | None:
    """(its options, the commands as scripts); None where the values are not known."""
    options, rest = _options(given)
    marks = [index for index, word in enumerate(rest) if word in SOURCES]
    end = marks[0] if marks else len(rest)
    command, bounds = " ".join(rest[:end]), [*marks, len(rest)]
    columns: list[list[list[str]]] = []
    for mark, after in zip(bounds, bounds[1:], strict=False):
        values = _values(reader, rest[mark], rest[mark + 1 : after])
        if values is None:
            return None
        if rest[mark].endswith("+") and columns:
            columns[-1] = [[*one, other] for one, other in zip(columns[-1], values, strict=False)]
        else:
            columns.append([[value] for value in values])
    if not marks:
        read = _input(options, reader)
        if read is None:
            return None
        columns = [[[line] for line in read.splitlines() if line]]
    combined = [[value for part in each for value in part] for each in product(*columns)]
    if not command or len(combined) > MAX_COMMANDS:
        return None
    return options, list(_filled(plain(command), combined))


def _options(given: Sequence[str]) -> tuple[list[str], list[str]]:
    left = list(given)
    taken: list[str] = []
    while left and left[0].startswith("-"):
        word = left.pop(0)
        taken.append(word)
        if word == "--":
            break
        if word.lstrip("-") in WITH_VALUE and left:
            taken.append(left.pop(0))
    return taken, left


def _input(options: Sequence[str], reader: Reader) -> str | None:
    named = next((value for name, value in zip(options, options[1:], strict=False) if name in ("-a", "--arg-file")), "")
    return read_file(reader, named) if named else reader.input


def _values(reader: Reader, mark: str, words: Sequence[str]) -> list[str] | None:
    if not mark.startswith("::::"):
        return list(words)
    texts = [read_file(reader, word) for word in words]
    known = [text for text in texts if text is not None]
    return [line for text in known for line in text.splitlines() if line] if len(known) == len(texts) else None


def _filled(command: str, combined: Iterable[Sequence[str]]) -> Iterator[str]:
    """The command with each combination in its places, else behind it."""
    for number, values in enumerate(combined, 1):
        quoted = [shlex.quote(plain(value)) for value in values]
        if PLACE.search(command):
            yield PLACE.sub(partial(_put, values=values, number=number), command)
        else:
            yield " ".join([command, *quoted])


def _put(found: re.Match[str], values: Sequence[str], number: int) -> str:
    if found["part"] == "#":
        return str(number)
    place = int(found["number"]) - 1 if found["number"] else None
    chosen = values if place is None else values[place : place + 1]
    return " ".join(shlex.quote(_part(plain(value), found["part"])) for value in chosen)


def _part(value: str, part: str) -> str:
    """The value of `{}`, `{.}` (without its ending), `{/}` (without its folder), `{//}` (its folder) or `{/.}`."""
    folder, _, name = value.rpartition("/")
    if part == "//":
        return folder or "."
    base = name if part.startswith("/") else value
    return re.sub(r"\.[^./]+$", "", base) if part.endswith(".") else base
