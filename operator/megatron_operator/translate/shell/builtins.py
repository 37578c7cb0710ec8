"""Commands of the shell itself that set values (`set --`, `shift`, `read`, `source` ...), and the files of scripts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from tree_sitter import Node

from megatron_operator.translate.programs import SHELLS, program
from megatron_operator.translate.shell.state import Reader
from megatron_operator.translate.shell.words import expanded, is_evaluated, source

MAX_FILE_BYTES = 1_000_000
PROFILES = re.compile(r"(activate|\.bashrc|conda\.sh|\.profile|setvars\.sh)$|^/etc/")
"""Files that set up a machine, and nothing of a training."""


def script_file(reader: Reader, given: Sequence[str]) -> tuple[str, list[str]] | None:
    """(text, arguments) of `bash train.sh a b` or `./train.sh`, where the file is there."""
    rest = (
        [word for word in given[1:] if not word.startswith("-")]
        if program(given[0]) in (*SHELLS, "sbatch")
        else list(given)
    )
    if not rest or not rest[0].endswith((".sh", ".slurm", ".sbatch", ".bash")):
        return None
    text = read_file(reader, rest[0])
    return None if text is None else (text, list(rest[1:]))


def read_file(reader: Reader, name: str) -> str | None:
    """A file that the script has written, or one that lies beside it."""
    if name in reader.files:
        return reader.files[name]
    name = re.sub(r"^\$\((?:dirname|pwd)[^)]*\)/|^\$\{?(?:SCRIPT_DIR|DIR|PWD|BASH_SOURCE%/\*)\}?/", "", name)
    path = None if reader.folder is None or not is_evaluated(name) else reader.folder / name
    try:
        return None if path is None or path.stat().st_size > MAX_FILE_BYTES else path.read_text()
    except (OSError, ValueError):
        return None


def _source(reader: Reader, node: Node, given: list[str]) -> str | None:
    name = given[1] if given[1:] else ""
    text = read_file(reader, name)
    if text is None and not PROFILES.search(name):
        reader.tell(node, f"{name} was not found; the variables that it sets are not known")
    return text


def _set(reader: Reader, node: Node, given: list[str]) -> None:
    if "--" in given:
        reader.values.arguments = given[given.index("--") + 1 :]


def _shift(reader: Reader, node: Node, given: list[str]) -> None:
    if reader.values.arguments is not None:
        count = int(given[1]) if given[1:] and given[1].isdigit() else 1
        reader.values.arguments = reader.values.arguments[count:]


def _unset(reader: Reader, node: Node, given: list[str]) -> None:
    for name in given[1:]:
        reader.values.variables[name] = ""
        reader.values.arrays.pop(name, None)


def _default(reader: Reader, node: Node, given: list[str]) -> None:
    """`: "${NAME:=value}"`."""
    for found in re.finditer(r"\$\{(\w+):?=", source(node)):
        end = source(node).find("}", found.end())
        reader.values.variables[found[1]] = expanded(source(node)[found.start() : end + 1], reader.values)


def _print(reader: Reader, node: Node, given: list[str]) -> None:
    if given[1:2] == ["-v"] and len(given) > 3:
        text = given[3]
        for value in given[4:]:
            text = re.sub(r"%[sd]", lambda _, put=value: put, text, count=1)  # type: ignore[misc]
        reader.values.variables[given[2]] = text


def _unread(reader: Reader, node: Node, given: list[str]) -> None:
    names = [word for word in given[1:] if re.fullmatch(r"[A-Za-z_]\w*", word)]
    for name in names:
        reader.values.variables.pop(name, None)


BUILTINS: Mapping[str, Callable[[Reader, Node, list[str]], str | None]] = {
    "source": _source,
    ".": _source,
    "set": _set,
    "shift": _shift,
    "unset": _unset,
    ":": _default,
    "printf": _print,
    "read": _unread,
    "mapfile": _unread,
    "readarray": _unread,
    "cd": lambda reader, node, given: None,
    "trap": lambda reader, node, given: None,
}
