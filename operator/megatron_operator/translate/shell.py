"""Parses the commands of a shell script and their known environment. Runs nothing and follows no branch.

Understood are line continuations, comments, quotes, variables, arrays (`+=` too), defaults (`${NAME:-8}`), `export`,
`eval` and the script of `bash -c` or `bash <<EOF`. Any other here-document is text. What only a
shell can evaluate, such as `$(hostname)`, stays verbatim in the word, so that it is noticed later.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import dropwhile, takewhile

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
    r"^(?P<command>[^\n#]*)(?<!<)<<-?[ \t]*(?P<quote>['\"]?)(?P<end>\w+)(?P=quote)(?P<others>[^\n]*\n)"
    r"(?P<body>(?:.*?\n)??)[ \t]*(?P=end)[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
OWN_ARGUMENTS = re.compile(r"\$(?:[@*]|\{[@*][^}]*\})")
SHELLS = ("bash", "sh", "zsh", "dash")
READING_SHELL = re.compile(
    rf"(?P<before>(?:.*[\s/])?(?:{'|'.join(SHELLS)}))(?:\s+[-+]\S*)*(?:\s+-s\s.*)?\s*", re.DOTALL
)
KEYWORDS = ("if", "then", "elif", "else", "while", "until", "do", "!", "{")
WRAPPERS = ("nohup", "exec", "time", "env", "sudo")
RUNNERS = frozenset(
    (*SHELLS, *WRAPPERS)
    + ("command", "doas", "gosu", "setsid", "stdbuf", "unbuffer", "xargs", "parallel", "watch", "flock", "tini")
    + ("numactl", "taskset", "nice", "ionice", "chrt", "timeout", "systemd-run", "cgexec", "prlimit", "chroot")
    + ("srun", "salloc", "sbatch", "bsub", "qsub", "jsrun", "aprun", "yhrun", "mpirun", "mpiexec", "horovodrun")
    + ("docker", "podman", "nerdctl", "kubectl", "oc", "singularity", "apptainer", "enroot", "shifter", "ch-run")
    + ("unshare", "ssh", "pdsh", "clush", "screen", "tmux", "conda", "mamba", "micromamba", "uv", "poetry", "pixi")
    + ("pipenv", "pdm", "torchrun", "accelerate", "deepspeed", "dlrover-run", "ray", "nsys", "ncu", "py-spy")
    + ("coverage", "strace")
)
"""Programs that run the command in their arguments; others, such as echo, only mention it."""
READERS = frozenset(("echo", "printf", "grep", "mkdir", "cat", "ls", "rm", "cp", "mv", "touch"))
PASSED_ON = re.compile(r"(?<!\w)(?:-e)?(NPROC_PER_NODE|NNODES|CUDA_VISIBLE_DEVICES)=(\d[\d,]*\d|\d|[^\s,]+)")
"""A variable of the launch in an option such as `--export=ALL,NNODES=2`."""
ASSIGNMENT = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<value>.*)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """One simple command: its words, and the variables set before or in front of it."""

    words: tuple[str, ...]
    environment: Mapping[str, str]


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


def invocations(script: str, environment: Mapping[str, str] | None = None) -> list[Invocation]:
    """Every simple command of the script, in order. environment: the known variables of its shell."""
    known = dict(environment or {})
    arrays: dict[str, list[str]] = {}
    found = []
    script = HERE_DOCUMENT.sub(_without_here_document, script)
    for words, array in _statements(script, known, arrays):
        if array is not None:
            name = array.removesuffix("+")
            arrays[name] = [*arrays.get(name, []), *words] if array != name else words
            continue
        own, rest = _assignments(_without_keywords(words))
        if not rest or rest[0] == "export":
            known |= own | _assignments(rest[1:])[0]
        else:
            before, inner = _script_in(rest)
            found += invocations(inner, {**known, **own, **passed_on(before)}) or [
                Invocation(words=tuple(rest), environment={**known, **own})
            ]
    return found


def without_own_arguments(words: list[str]) -> tuple[list[str], bool]:
    """(the words without `$@`, the arguments of the script or function that runs them; whether it was among them)."""
    kept = [word for word in words if not OWN_ARGUMENTS.fullmatch(word)]
    return kept, len(kept) != len(words)


def passed_on(words: Sequence[str]) -> dict[str, str]:
    """The variables that these words of a program such as docker or srun set for the command after them."""
    assigned = [found for word in words if (found := ASSIGNMENT.fullmatch(word)) and found["name"].isupper()]
    return {found["name"]: found["value"] for found in assigned} | dict(PASSED_ON.findall(" ".join(words)))


def starts(words: Sequence[str]) -> Iterator[int]:
    """Where a command may start: at the first word and, after a program that runs another, at any later one."""
    if words:
        yield 0
    if words and _runs_another(words):
        later = enumerate(words[1:], 1)
        yield from (index for index, _ in takewhile(lambda each: not is_reader(each[1]), later))


def is_reader(word: str) -> bool:
    """Whether this program only mentions the words after it."""
    return _program(word) in READERS


def _runs_another(words: Sequence[str]) -> bool:
    """Whether the first word may run others: known for it, a script, an option left of `sudo`, or not evaluated."""
    if _program(words[0]).startswith("python"):
        return words[1:2] != [] and words[1].startswith("-")
    return _program(words[0]) in RUNNERS or words[0].endswith(".sh") or words[0].startswith(("-", "$", "`"))


def _program(word: str) -> str:
    return word.rpartition("/")[2]


def _script_in(words: list[str]) -> tuple[list[str], str]:
    """(the words before it, the script) of `eval` or `bash -c`, also behind srun and others; "" where there is none."""
    if words[0] == "eval":
        return [], " ".join(words[1:])
    for index in starts(words):
        found = _script_of_shell(words[index + 1 :]) if _program(words[index]) in SHELLS else None
        if found is not None:
            return words[:index], found
    return [], ""


def _script_of_shell(options: Sequence[str]) -> str | None:
    """The script among the words behind `bash`, None without `-c`."""
    left = iter(options)
    for option in left:
        if re.fullmatch(r"-[a-z]*c", option):
            return next(left, None)
        if re.fullmatch(r"[-+][a-z]*o", option):  # -o pipefail
            next(left, None)
        elif not option.startswith(("-", "+")):
            return None
    return None


def _without_here_document(found: re.Match[str]) -> str:
    """The command alone; one that a shell reads becomes the script of its `-c`."""
    shell = READING_SHELL.fullmatch(found["command"])
    read = f"{shell['before']} -c {shlex.quote(found['body'])}" if shell else found["command"]
    return f"{read} {found['others']}"


def _without_keywords(words: list[str]) -> list[str]:
    return list(dropwhile(KEYWORDS.__contains__, words))


def _statements(
    script: str, known: Mapping[str, str], arrays: Mapping[str, list[str]]
) -> Iterator[tuple[list[str], str | None]]:
    """(words, name of the array they are assigned to or None) of each statement."""
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
