"""Programs of a command line: which of them run the command behind them, what they set for it, which only read it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile

SHELLS = ("bash", "sh", "zsh", "dash")
SCRIPTS = (".sh", ".slurm", ".sbatch", ".bash")
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
READ_SCRIPTS = frozenset((*SHELLS, "sbatch", "qsub", "bsub", "ssh", "pdsh", "clush"))
"""Programs that run what they read as a script."""
TAKES_TEXT = ("ssh", "pdsh", "clush", "tmux", "su", "runuser", "watch", "script")
"""Programs whose last word may be a script of its own: `ssh host "cd /x && ..."`."""
PASSED_ON = re.compile(r"(?<!\w)(?:-e)?(NPROC_PER_NODE|NNODES|CUDA_VISIBLE_DEVICES)=(\d[\d,]*\d|\d|[^\s,]+)")
"""A variable of the launch in an option such as `--export=ALL,NNODES=2`."""
ASSIGNMENT = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<value>.*)", re.DOTALL)


def program(word: str) -> str:
    """The name of the program, without its folder."""
    return word.rpartition("/")[2]


def is_reader(word: str) -> bool:
    """Whether this program only mentions the words after it."""
    return program(word) in READERS


def starts(words: Sequence[str]) -> Iterator[int]:
    """Where a command may start: at the first word and, after a program that runs another, at any later one."""
    if words:
        yield 0
    if words and _runs_another(words):
        later = enumerate(words[1:], 1)
        yield from (index for index, _ in takewhile(lambda each: not is_reader(each[1]), later))


def passed_on(words: Sequence[str]) -> dict[str, str]:
    """The variables that these words of a program such as docker or srun set for the command after them."""
    assigned = [found for word in words if (found := ASSIGNMENT.fullmatch(word)) and found["name"].isupper()]
    return {found["name"]: found["value"] for found in assigned} | dict(PASSED_ON.findall(" ".join(words)))


def script_in(words: Sequence[str]) -> tuple[list[str], str]:
    """(the words before it, the script) of `eval`, `bash -c` or `ssh host "..."`; "" where there is none."""
    if words[0] == "eval":
        return [], " ".join(words[1:])
    for index in starts(words):
        name = program(words[index])
        found = _script_of_shell(words[index + 1 :]) if name in SHELLS else _of_option(name, words[index + 1 :])
        if found is not None:
            outer = words[:index] if name in SHELLS else words
            return [word for word in outer if word != found], found
    return [], ""


def arguments_of_script(words: Sequence[str], script: str) -> list[str] | None:
    """What stands behind the script and the name of `bash -c SCRIPT NAME a b`; None for other programs."""
    places = [index for index, word in enumerate(words[1:], 1) if word == script]
    if not script or not places or not re.fullmatch(r"-[a-z]*c", words[places[0] - 1]):
        return None
    return list(words[places[0] + 2 :])


def cleared(words: Sequence[str], names: Iterable[str]) -> set[str]:
    """Those of the variables that `env -i` or `env -u NAME` takes from the command behind it."""
    start = next((index for index, word in enumerate(words) if program(word) == "env"), None)
    if start is None:
        return set()
    options = list(takewhile(lambda word: word.startswith("-") or ASSIGNMENT.fullmatch(word), words[start + 1 :]))
    if {"-", "-i", "--ignore-environment"} & set(options):
        return set(names)
    text = " ".join(words[start + 1 :])
    return {found[1] for found in re.finditer(r"(?:^|\s)(?:-u\s*|--unset[= ])(\w+)", text)}


def reads_script(words: Sequence[str]) -> bool:
    """Whether what stands on its standard input is run: `bash`, `ssh host`, `sbatch`, also behind srun and others."""
    for index in starts(words):
        name, rest = program(words[index]), list(words[index + 1 :])
        if name in SHELLS:
            return "-s" in rest or all(word.startswith(("-", "+")) for word in rest)
        if name in READ_SCRIPTS:
            return True
    return False


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


def _of_option(name: str, words: Sequence[str]) -> str | None:
    """The script of `ssh host "cd /x && ..."` (one word of a line) and of `sbatch --wrap "..."`."""
    if name == "sbatch":
        joined = [word.partition("=")[2] for word in words if word.startswith("--wrap=")]
        after = [value for option, value in zip(words, words[1:], strict=False) if option == "--wrap"]
        return next(iter([*joined, *after]), None)
    is_remote = name in TAKES_TEXT and len(words) > 1 and " " in words[-1]
    return words[-1] if is_remote else None


def _runs_another(words: Sequence[str]) -> bool:
    """Whether the first word may run others: known for it, a script, an option left of `sudo`, or not evaluated."""
    name = program(words[0])
    if name.startswith("python"):
        return words[1:2] != [] and words[1].startswith("-")
    return name in RUNNERS or name.endswith(".sh") or words[0].startswith(("-", "$", "`"))
