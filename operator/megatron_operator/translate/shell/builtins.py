"""Commands of the shell itself that set values (`set --`, `shift`, `read`, `source` ...), and the files of scripts."""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tree_sitter import Node

from megatron_operator.translate.programs import SCRIPTS, SHELLS, program, starts
from megatron_operator.translate.shell import folders
from megatron_operator.translate.shell.arithmetic import assigned
from megatron_operator.translate.shell.filters import formatted
from megatron_operator.translate.shell.literal import plain
from megatron_operator.translate.shell.loops import fields
from megatron_operator.translate.shell.nodes import is_evaluated, source
from megatron_operator.translate.shell.state import Reader
from megatron_operator.translate.shell.words import expanded, key_of
from megatron_operator.translate.text_file import read_text

MAX_FILE_BYTES = 1_000_000
RUN_FILES = (*SHELLS, "sbatch", "qsub", "bsub")
PROFILES = re.compile(r"(activate|\.bashrc|conda\.sh|\.profile|setvars\.sh)$|^/etc/")
"""Files that set up a machine, and nothing of a training."""


def script_file(reader: Reader, given: Sequence[str]) -> tuple[str, list[str], list[str], str] | None:
    """(text, arguments, words in front, path) of `bash train.sh a b`, `srun -N 2 ./train.sh` or `nohup bash train.sh`,
    where the file is there."""
    for start in starts(given):
        takes_file = program(given[start]) in RUN_FILES
        places = range(start + 1, len(given)) if takes_file else range(start, start + 1)
        place = next((index for index in places if given[index].endswith(SCRIPTS)), None)
        if place is None or "-c" in given[:place]:
            continue
        text = read_file(reader, given[place])
        if text is not None:
            return text, list(given[place + 1 :]), list(given[:place] or given[:1]), given[place]
    return None


def read_file(reader: Reader, name: str) -> str | None:
    """A file that the script has written, or one that lies beside it."""
    written = next((each for each in reader.files if posixpath.normpath(each) == posixpath.normpath(name)), None)
    if written is not None:
        return reader.files[written]
    name = re.sub(r"^\$\((?:dirname|pwd)[^)]*\)/|^\$\{?(?:SCRIPT_DIR|DIR|PWD|BASH_SOURCE%/\*)\}?/", "", name)
    for path in _places(reader, name) if is_evaluated(name) else ():
        try:
            if path.stat().st_size <= MAX_FILE_BYTES:
                return read_text(path)[0]
        except (OSError, ValueError):
            continue
    return None


def _places(reader: Reader, name: str) -> list[Path]:
    """Where a file may lie here: in the folder that the script has changed to, beside it, in the one it started in."""
    if reader.folder is None:
        return []
    in_folder = folders.of_this_machine(name, reader.values.folder)
    beside = reader.folder / name
    has_moved = reader.values.folder not in (None, folders.WORKDIR)
    places = (in_folder, beside) if has_moved else (beside, in_folder)
    return [each for each in places if each is not None]


def _source(reader: Reader, node: Node, given: list[str]) -> str | None:
    name = given[1] if given[1:] else ""
    text = read_file(reader, name)
    if text is None and not PROFILES.search(name):
        reader.tell(node, f"{name} was not found; the variables that it sets are not known")
    return text


def _change_folder(reader: Reader, node: Node, given: list[str]) -> None:
    reader.values.folder = folders.changed(reader.values.folder, list(map(plain, given[1:])))


def _leave_folder(reader: Reader, node: Node, given: list[str]) -> None:
    reader.values.folder = None


def _set(reader: Reader, node: Node, given: list[str]) -> None:
    """`set -a`, `set -- a b`, `set a b`; an option of -o has a value."""
    left = given[1:]
    while left and re.match(r"[-+]", left[0]) and left[0] != "--":
        option = left.pop(0)
        value = left.pop(0) if option[1:].endswith("o") and left else ""
        if "a" in option[1:] or value == "allexport":
            reader.exports_all = option.startswith("-")
    if left:
        reader.values.arguments = left[left[0] == "--" :]


def _shift(reader: Reader, node: Node, given: list[str]) -> None:
    if reader.values.arguments is not None:
        count = int(given[1]) if given[1:] and given[1].isdigit() else 1
        reader.values.arguments = reader.values.arguments[count:]


def unset(reader: Reader, given: Sequence[str]) -> None:
    """`unset NAME ...`, of functions with -f."""
    for name in (word for word in given if not word.startswith("-")):
        if "-f" in given:
            reader.functions.pop(name, None)
            continue
        base, _, index = name.removesuffix("]").partition("[")
        if index:
            reader.values.arrays.get(base, {}).pop(key_of(reader.values, base, index), None)
        else:
            reader.exported.discard(name)
            if name in reader.values.arrays:
                reader.values.arrays[name] = {}
            else:
                reader.values.variables[name] = ""


def _default(reader: Reader, node: Node, given: list[str]) -> None:
    """`: "${NAME:=value}"`."""
    for found in re.finditer(r"\$\{(\w+):?=", source(node)):
        end = source(node).find("}", found.end())
        reader.values.variables[found[1]] = expanded(source(node)[found.start() : end + 1], reader.values)


def _print(reader: Reader, node: Node, given: list[str]) -> None:
    if given[1:2] == ["-v"] and len(given) > 3:
        text = formatted(given[3], given[4:])
        reader.values.variables.pop(given[2], None)
        reader.values.variables |= {} if text is None else {given[2]: text}


def _read_words(reader: Reader, node: Node, given: list[str]) -> None:
    """`read NAME ...`: the first line of the input, with `-d ''` all of it; without an input nothing is known."""
    names = [word for word in given[1:] if re.fullmatch(r"[A-Za-z_]\w*", word)] or ["REPLY"]
    text, is_whole = reader.input, "-d" in given
    for name in names:
        reader.values.variables.pop(name, None)
    if text is None:
        return
    line = text.strip() if is_whole else next(iter(text.splitlines()), "")
    between = reader.values.variables.get("IFS")
    separator = between[:1] if between is not None and between.strip() == between else None
    if any(re.fullmatch(r"-[a-z]*a", word) for word in given[1:]):
        read_words = line.split(separator or None) if is_evaluated(line) else [line]
        reader.values.arrays[names[0]] = {str(index): word for index, word in enumerate(read_words)}
    else:
        reader.values.variables |= {names[-1]: line} if is_whole else fields(line, names, separator)


def _read_lines(reader: Reader, node: Node, given: list[str]) -> None:
    """`mapfile -t NAME`: the lines of the input."""
    name = given[-1] if given[1:] and re.fullmatch(r"[A-Za-z_]\w*", given[-1]) else "MAPFILE"
    reader.values.variables.pop(name, None)
    reader.values.arrays.pop(name, None)
    if reader.input is not None:
        reader.values.arrays[name] = {str(index): line for index, line in enumerate(reader.input.splitlines())}


def calculate(reader: Reader, text: str) -> None:
    """`let "N = 3"` and `(( N++ ))`."""
    found = assigned(text, reader.values.variables)
    if found is not None:
        name, value = found
        reader.values.variables.pop(name, None)
        reader.values.variables |= {} if value is None else {name: str(value)}


def _let(reader: Reader, node: Node, given: list[str]) -> None:
    for text in given[1:]:
        calculate(reader, text)


def _end(reader: Reader, node: Node, given: list[str]) -> None:
    if not reader.skips:
        reader.over = given[0]


def repeated(reader: Reader, node: Node, given: list[str]) -> list[list[str]]:
    """The commands of `xargs`, which appends the words of its input or puts its lines in."""
    options, command = _of_xargs(given)
    text = read_file(reader, options["-a"]) if "-a" in options else reader.input
    if text is None:
        reader.tell(node, "the words that xargs reads are not known")
        return [command]
    replaced = options.get("-I") or ("{}" if "-i" in options else None)
    try:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        read_words = text.split(options["-d"].replace("\\n", "\n")) if "-d" in options else shlex.split(text)
    except ValueError:
        return [command]
    if replaced:
        return [[word.replace(replaced, line) for word in command] for line in lines]
    if "-L" in options:
        return [[*command, *shlex.split(line)] for line in lines]
    read_words = [word for word in read_words if word.strip()]
    size = int(options["-n"]) if options.get("-n", "").isdigit() else len(read_words) or 1
    return [[*command, *read_words[start : start + size]] for start in range(0, len(read_words) or 1, size)]


def _of_xargs(given: list[str]) -> tuple[dict[str, str], list[str]]:
    """(options with their values, the command)."""
    options, left = {}, list(given)
    while left and left[0].startswith("-"):
        word = left.pop(0)
        name = word[:2] if not word.startswith("--") else word
        value = word[2:] if name != word else ""
        if name in ("-a", "-I", "-n", "-L", "-P", "-d", "-s") and not value and left:
            value = left.pop(0)
        options[name] = value
    return options, left


BUILTINS: Mapping[str, Callable[[Reader, Node, list[str]], str | None]] = {
    "source": _source,
    ".": _source,
    "set": _set,
    "shift": _shift,
    "unset": lambda reader, node, given: unset(reader, given[1:]),
    ":": _default,
    "printf": _print,
    "read": _read_words,
    "mapfile": _read_lines,
    "readarray": _read_lines,
    "let": _let,
    **dict.fromkeys(("exit", "return", "break", "continue"), _end),
    "cd": _change_folder,
    "pushd": _change_folder,
    "popd": _leave_folder,
    "trap": lambda reader, node, given: None,
}
