"""What simple programs write to their output: echo, printf, seq, cat, grep, tr, cut and so on. Runs nothing.

Each takes its words and the text on its input (None: not known) and returns its output, or None where only a machine
can tell.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence

from megatron_operator.translate.shell.arithmetic import calculated
from megatron_operator.translate.shell.literal import kept, plain
from megatron_operator.translate.shell.nodes import is_evaluated
from megatron_operator.translate.shell.word import escaped

MAX_COUNT = 64
FIRST_UNKNOWN = 0xE200
"""The private character of the first word that is not known."""
Files = Callable[[str], str | None]
Filter = Callable[[Sequence[str], str | None, Files], str | None]


def output(given: Sequence[str], text: str | None, files: Files) -> str | None:
    """What the command writes, without running it."""
    write = FILTERS.get(given[0].rpartition("/")[2]) if given else None
    return None if write is None else write(given[1:], text, files)


def printed(given: Sequence[str]) -> str | None:
    """What `echo` or `printf` writes of words that are not all known: these as they stand. None for other programs."""
    if given[:1] not in (["echo"], ["printf"]) or not all(map(is_evaluated, given[:2])) or len(given) > MAX_COUNT:
        return None
    unknown = {chr(FIRST_UNKNOWN + at): word for at, word in enumerate(given) if not is_evaluated(word)}
    marked = [plain(word) if is_evaluated(word) else chr(FIRST_UNKNOWN + at) for at, word in enumerate(given)]
    written = output(marked, None, lambda name: None)
    around = '"' if given[0] == "printf" and "%q" in given[1] else ""
    shown = {mark: around + word + around for mark, word in unknown.items()}
    return None if written is None else "".join(shown.get(each, each) for each in kept(written.rstrip("\n")))


def formatted(pattern: str, values: Sequence[str]) -> str | None:
    """The text of `printf PATTERN values`, the pattern repeated until all values are used."""
    parts = re.findall(r"%%|%[-+ 0#]*\d*(?:\.\d+)?[a-zA-Z]|\\.|[^%\\]+|.", pattern, re.DOTALL)
    escapes = {"\\n": "\n", "\\t": "\t", "\\\\": "\\", "%%": "%"}
    left, written = list(values), ""
    try:
        while True:
            before = len(left)
            for part in parts:
                if part.startswith("%") and part != "%%":
                    value = left.pop(0) if left else ""
                    written += _filled(part, value)
                else:
                    written += escapes.get(part, part)
            if not left or len(left) == before:
                return written
    except (ValueError, TypeError):
        return None


def _filled(part: str, value: str) -> str:
    if part[-1] == "q":
        return (part[:-1] + "s") % escaped(value)
    return part % (int(value or 0) if part[-1] in "di" else float(value or 0) if part[-1] in "feg" else value)


def _echo(given: Sequence[str], text: str | None, files: Files) -> str:
    options = [word for word in given[:2] if re.fullmatch(r"-[neE]+", word)]
    written = " ".join(given[len(options) :])
    return written.replace("\\n", "\n").replace("\\t", "\t") if any("e" in each for each in options) else written + "\n"


def _printf(given: Sequence[str], text: str | None, files: Files) -> str | None:
    words = given[1:] if given[:1] == ["--"] else given
    return formatted(words[0], words[1:]) if words else None


def _seq(given: Sequence[str], text: str | None, files: Files) -> str | None:
    between, given = _separator_of_seq(given)
    if not 1 <= len(given) <= 3 or not all(re.fullmatch(r"-?\d+", each) for each in given):
        return None
    numbers = [int(each) for each in given]
    first, last = numbers[0] if given[1:] else 1, numbers[-1]
    step = numbers[1] if given[2:] else 1
    counted = range(first, last + (1 if step > 0 else -1), step) if step else range(0)
    return between.join(map(str, counted)) + "\n" if len(counted) <= MAX_COUNT else None


def _separator_of_seq(given: Sequence[str]) -> tuple[str, list[str]]:
    """(the text between numbers, the other words) of `seq -s, 0 7` or `seq -s , 0 7`."""
    words = list(given)
    if words[:1] == ["-s"] and words[1:]:
        return words[1], words[2:]
    return (words[0][2:], words[1:]) if words and words[0].startswith("-s") else ("\n", words)


def _cat(given: Sequence[str], text: str | None, files: Files) -> str | None:
    names = [word for word in given if not word.startswith("-")]
    read = [files(name) for name in names] if names else [text]
    known = [each for each in read if each is not None]
    return "".join(known) if len(known) == len(read) else None


def _head(given: Sequence[str], text: str | None, files: Files) -> str | None:
    count, names = _count(given)
    lines = _lines(_cat(names, text, files))
    return None if lines is None or not count.isdigit() else "".join(lines[: int(count)])


def _tail(given: Sequence[str], text: str | None, files: Files) -> str | None:
    count, names = _count(given)
    lines = _lines(_cat(names, text, files))
    if lines is None or not re.fullmatch(r"\+?\d+", count):
        return None
    return "".join(lines[int(count) - 1 :] if count.startswith("+") else lines[-int(count) :])


def _count(given: Sequence[str]) -> tuple[str, list[str]]:
    """(the number of lines, the files) of `-n 3 file`, `-n3 file` or `-3 file`."""
    words = list(given)
    if words[:1] == ["-n"] and words[1:]:
        return words[1], words[2:]
    found = re.fullmatch(r"-n?(\+?\d+)", words[0]) if words else None
    return (found[1], words[1:]) if found else ("10", words)


def _grep(given: Sequence[str], text: str | None, files: Files) -> str | None:
    """Lines that fit, or with -v those that do not; only patterns that mean the same to Python."""
    options = [word for word in given if word.startswith("-")]
    words = [word for word in given if not word.startswith("-")]
    if not words or set("".join(options)) - set("-vE") or not re.fullmatch(r"\^?[\w #=./,:-]*(\\?\$)?", words[0]):
        return None
    lines = _lines(_cat(words[1:], text, files))
    is_kept = [bool(re.search(words[0], line.rstrip("\n"))) != ("-v" in options) for line in lines or ()]
    return None if lines is None else "".join(line for line, kept in zip(lines, is_kept, strict=True) if kept)


def _xargs(given: Sequence[str], text: str | None, files: Files) -> str | None:
    """Without a command: the words of the input in one line."""
    try:
        return None if given or text is None else " ".join(shlex.split(text)) + "\n"
    except ValueError:
        return None


def _expr(given: Sequence[str], text: str | None, files: Files) -> str | None:
    number = calculated(" ".join(given), {})
    return None if number is None else f"{number}\n"


CLASSES = {"[:upper:]": "A-Z", "[:lower:]": "a-z", "[:digit:]": "0-9", "[:space:]": " \t\n", "[:alpha:]": "A-Za-z"}


def _tr(given: Sequence[str], text: str | None, files: Files) -> str | None:
    """`tr a b`, `tr -d a`, `tr -cd a`, `tr -s a` of characters, ranges and classes."""
    options = [word for word in given if re.fullmatch(r"-[ds]|-cd|-dc", word)]
    sets = [_characters(word) for word in given if word not in options]
    if (
        text is None
        or len(options) > 1
        or not all(sets)
        or len(sets) not in ((1, 2) if "-s" in options else (2 - len(options),))
    ):
        return None
    if len(sets) == 2:
        put = {ord(old): sets[1][place : place + 1] or sets[1][-1] for place, old in enumerate(sets[0])}
        text = text.translate(put)
        sets = sets[1:] if options else sets
    if options:
        others = "^" if "c" in options[0] else ""
        several = re.compile(f"[{others}" + re.escape(sets[0]) + "]" + ("+" if options == ["-s"] else ""))
        return several.sub(lambda found: found[0][0] if options == ["-s"] else "", text)
    return text


def _characters(word: str) -> str:
    """The characters that a set of tr means, "" where it is not read here."""
    for name, meant in CLASSES.items():
        word = word.replace(name, meant)
    word = word.replace("\\n", "\n").replace("\\t", "\t")
    if "[:" in word or "\\" in word:
        return ""
    return re.sub(r"(\w)-(\w)", lambda found: "".join(map(chr, range(ord(found[1]), ord(found[2]) + 1))), word)


def _wc(given: Sequence[str], text: str | None, files: Files) -> str | None:
    """`wc -l`, `wc -w` and `wc -c` of the input."""
    if text is None or list(given) not in (["-l"], ["-w"], ["-c"]):
        return None
    return f"{ {'-l': text.count(chr(10)), '-w': len(text.split()), '-c': len(text.encode())}[given[0]] }\n"


def _cut(given: Sequence[str], text: str | None, files: Files) -> str | None:
    """`cut -d, -f1` of one field."""
    found = re.fullmatch(r"(?:-d ?(?P<between>.) )?-f ?(?P<field>\d+)(?: -d ?(?P<behind>.))?", " ".join(given))
    lines = _lines(text)
    if found is None or lines is None or found["field"] == "0":
        return None
    between, field = found["between"] or found["behind"] or "\t", int(found["field"]) - 1
    parts = [line.rstrip("\n").split(between) for line in lines]
    return "".join(f"{each[0] if len(each) == 1 else ''.join(each[field : field + 1])}\n" for each in parts)


def _awk(given: Sequence[str], text: str | None, files: Files) -> str | None:
    """`awk -F, '{print NF}'` and `awk '{print $2}'`."""
    found = re.fullmatch(r"(?:-F ?(?P<between>[^ \\]) )?\{ *print +(?P<what>NF|\$\d+) *;? *\}", " ".join(given))
    lines = _lines(text)
    if found is None or lines is None:
        return None
    parts = [line.rstrip("\n").split(found["between"]) if line.strip() else [] for line in lines]
    if found["what"] == "NF":
        return "".join(f"{len(each)}\n" for each in parts)
    field = int(found["what"][1:]) - 1
    if field < 0:
        return text
    return "".join("".join(each[field : field + 1]) + "\n" for each in parts)


def _sed(given: Sequence[str], text: str | None, files: Files) -> str | None:
    """`sed 's/a/b/g'` of plain characters."""
    words = list(given)[list(given[:1]) == ["-e"] :]
    found = (
        re.fullmatch(r"s(?P<mark>[/|,#@])(?P<old>[\w :=-]+)(?P=mark)(?P<new>[\w ./:=-]*)(?P=mark)(?P<all>g?)", words[0])
        if len(words) == 1
        else None
    )
    lines = _lines(text)
    if found is None or lines is None:
        return None
    return "".join(line.replace(found["old"], found["new"], -1 if found["all"] else 1) for line in lines)


def _lines(text: str | None) -> list[str] | None:
    return None if text is None else text.splitlines(keepends=True)


def _basename(given: Sequence[str], text: str | None, files: Files) -> str | None:
    names = list(given)[list(given[:1]) == ["--"] :]
    return names[0].rstrip("/").rpartition("/")[2].removesuffix(names[1] if names[1:] else "") if names else None


def _dirname(given: Sequence[str], text: str | None, files: Files) -> str | None:
    names = list(given)[list(given[:1]) == ["--"] :]
    return (names[0].rstrip("/").rpartition("/")[0] or ("/" if names[0][:1] == "/" else ".")) if names else None


FILTERS: Mapping[str, Filter] = {
    "echo": _echo,
    "printf": _printf,
    "seq": _seq,
    "cat": _cat,
    "head": _head,
    "tail": _tail,
    "grep": _grep,
    "xargs": _xargs,
    "expr": _expr,
    "basename": _basename,
    "dirname": _dirname,
    "tr": _tr,
    "wc": _wc,
    "cut": _cut,
    "awk": _awk,
    "sed": _sed,
}
