"""Finds the commands of a script that start a training or an export, with their numbers of nodes and processes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from megatron_operator.translate import launchers
from megatron_operator.translate.hosts import Files, no_file
from megatron_operator.translate.launchers import FILES, OF_NODES, SWITCHES, TORCH_LAUNCHERS, Ranks, number
from megatron_operator.translate.programs import SCRIPTS, WRAPPERS, cleared, is_reader, passed_on, starts
from megatron_operator.translate.shell.state import Invocation
from megatron_trainjob.args.field import EVERY_TASK, Task
from megatron_trainjob.environment import NUM_NODES, PROCESSES_PER_NODE

FOUND_BY_SHELL = re.compile(r"\$\((?:which|command -v)\s+([^\s)]+)\)")
OWN_ARGUMENTS = re.compile(r"\$(?:[@*]|\{[@*][^}]*\})")
DEVICES = ("CUDA_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
NOT_SAID = Ranks()
OF_SWIFT = re.compile(r"(?:^|[./])swift[./]cli[./]export(?:\.py)?$")
"""The program of `swift export`; what trains beside it does so with transformers."""
IN_A_WORD = re.compile(r"\b(?:megatron\s+(?:pt|sft|rlhf|export)|swift\s+export)\s+-")
"""A training in the text that another program gets, such as `tmux send-keys "megatron sft --model ..."`."""
TORCH_OPTIONS = frozenset(
    (*SWITCHES, "nnodes", "nproc_per_node", "node_rank", "master_addr", "master_port")
    + ("rdzv_backend", "rdzv_endpoint", "rdzv_id", "rdzv_conf")
)
"""Options of torchrun that the operator's own launcher answers."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A found command: its task, its arguments, and its sizes (None: not given).

    source: the command as it was started. behind: the programs in front of it and around its script, with their
    options. exported: names of the variables that it was started with. unread: options of its launcher with a number
    of nodes or processes that is not known here. folder: the one that it was started in, None if that is not known.
    private: variables that its shell kept to itself.
    """

    task: Task
    words: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    num_nodes: int | None = None
    num_processes: int | None = None
    source: str = ""
    behind: tuple[str, ...] = ()
    exported: frozenset[str] = frozenset()
    unread: tuple[str, ...] = ()
    folder: str | None = None
    private: frozenset[str] = frozenset()


def find(commands: Iterable[Invocation], header: Sequence[str] = (), files: Files = no_file) -> list[Launch]:
    """Every command that trains or exports, in its order; of one that starts each node of a job, or is repeated, the
    first. files: the text of a file that its launcher may name."""
    found: list[Launch] = []
    of_header = launchers.of_header(header)
    for launch in (launch for command in commands for launch in _recognized(command, of_header, files)):
        is_another_node = (launch.num_nodes or 1) > 1 and any(_is_same(launch, other) for other in found)
        is_again = any(_is_same(launch, other) and _started(launch) == _started(other) for other in found)
        if not is_another_node and not is_again:
            found.append(launch)
    return found


def _started(launch: Launch) -> dict[str, str | None]:
    """The variables that the command sees."""
    return {name: launch.environment.get(name) for name in launch.exported}


def without_own_arguments(given: Sequence[str]) -> tuple[list[str], bool]:
    """(the words without `$@`, the arguments of the script or function that runs them; whether it was among them)."""
    left = [word for word in given if not OWN_ARGUMENTS.fullmatch(word)]
    return left, len(left) != len(given)


def last_of_each(words: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """(the words with the last occurrence of each flag, (name, value) of earlier ones), as argparse reads them."""
    groups: list[list[str]] = [[]]
    for word in words:
        if word.startswith("--") and len(word) > 2:
            groups.append([])
        groups[-1].append(word)
    names = [group[0][2:].partition("=")[0].replace("-", "_") if group else "" for group in groups]
    last = {name: index for index, name in enumerate(names)}
    kept = [index for index, name in enumerate(names) if last[name] == index or name == "config"]
    dropped = [index for index in range(len(groups)) if index not in kept]
    written = {index: " ".join([*groups[index][0].partition("=")[2:], *groups[index][1:]]).strip() for index in dropped}
    return [word for index in kept for word in groups[index]], [(names[index], written[index]) for index in dropped]


def unread_sizes(launch: Launch) -> list[str]:
    """NAME=VALUE of the variables whose number of nodes or GPUs only their own machine knows, such as `$(seq 8)`."""
    names = (NUM_NODES,) * (launch.num_nodes is None) + (PROCESSES_PER_NODE, *DEVICES) * (launch.num_processes is None)
    of_environment = [f"{name}={launch.environment[name]}" for name in names if launch.environment.get(name)]
    return [*of_environment, *(each for each in launch.unread if None in _sizes_of(each, launch))]


def _sizes_of(option: str, launch: Launch) -> tuple[int | None, ...]:
    """What is known of the numbers that an option of a launcher would tell: a file has those of nodes and processes."""
    name = option.lstrip("-").partition("=")[0]
    if name in FILES:
        return launch.num_nodes, launch.num_processes
    return (launch.num_nodes,) if name in OF_NODES else (launch.num_processes,)


def unread(commands: Iterable[Invocation]) -> list[str]:
    """The commands that name a training behind an unknown program, verbatim."""
    return [" ".join(each.words) for each in commands if not any(_recognized(each)) and _names_training(each.words)]


def missing_scripts(commands: Iterable[Invocation]) -> list[str]:
    """The scripts that these commands start and that do not lie where they are named: `srun /shared/train.sh`."""
    return [
        word for each in commands for index in starts(list(each.words)) if (word := each.words[index]).endswith(SCRIPTS)
    ]


def others(commands: Iterable[Invocation]) -> list[str]:
    """The commands of the same programs that neither train nor export, verbatim: `swift infer ...`."""
    own = ("swift", "megatron")
    found = [each for each in commands if PurePath(each.words[0]).name in own and each.words[1:]]
    return [" ".join(each.words) for each in found if not any(_recognized(each)) and not _names_training(each.words)]


def stray(commands: Iterable[Invocation]) -> list[str]:
    """The options that the shell takes for a program, verbatim: what continued a command had ended before."""
    return [" ".join(each.words) for each in commands if re.match(r"--?[A-Za-z]", each.words[0])]


def _is_same(one: Launch, other: Launch) -> bool:
    return (one.task, one.words, one.num_nodes) == (other.task, other.words, other.num_nodes)


def _names_training(words: Sequence[str]) -> bool:
    if is_reader(words[0]):
        return False
    has_task = any(_task(words[index:])[0] for index in range(1, len(words)))
    return has_task or any(IN_A_WORD.search(word) for word in words[1:])


def _recognized(command: Invocation, of_header: Ranks = NOT_SAID, files: Files = no_file) -> Iterator[Launch]:
    words = [FOUND_BY_SHELL.sub(r"\1", word) for word in command.words]
    hidden = cleared(words, command.environment)
    environment = {name: value for name, value in command.environment.items() if name not in hidden}
    exported = set(command.exported) - hidden
    while words and (words[0] in WRAPPERS or re.match(r"[A-Za-z_]\w*=", words[0])):
        name, separator, value = words.pop(0).partition("=")
        environment |= {name: value} if separator else {}
        exported |= {name} if separator else set()
    for start in starts(words):
        started = _without_launcher(words[start:])
        task, rest = _task(started)
        if task is not None:
            break
    else:
        return
    # srun, docker run, numactl ...: their options belong to another scheduler.
    passed = passed_on(words[:start])
    before = words[: len(words) - len(started)]
    said = [
        launchers.requested(before, files),
        _of_environment(environment | passed),
        launchers.requested(command.behind, files),
        of_header,
    ]
    yield Launch(
        task=task,
        words=tuple(rest),
        environment=environment | passed,
        num_nodes=next((each.num_nodes for each in said if each.num_nodes), None),
        num_processes=next((each.num_processes for each in said if each.num_processes), None),
        source=" ".join(command.words[: len(command.words) - len(rest)]),
        behind=(*command.behind, *_with_options_left(words[:start], before[start:])),
        exported=frozenset(exported | passed.keys()),
        unread=tuple(each for group in (before, command.behind) for each in launchers.unread(group, files)),
        folder=command.folder,
        private=command.private - passed.keys() - exported,
    )


def _with_options_left(outer: Sequence[str], launcher: Sequence[str]) -> Sequence[str]:
    """The programs in front of a training; torchrun among them only with an option that nothing here stands for."""
    kept = outer if outer[:1] and not PurePath(outer[0]).name.startswith("python") else ()
    return (*kept, *launcher) if launchers.options_of(launcher).keys() - TORCH_OPTIONS else kept


def _of_environment(environment: Mapping[str, str]) -> Ranks:
    """NNODES and NPROC_PER_NODE, else as many processes as devices are named."""
    processes = number(environment.get(PROCESSES_PER_NODE)) or _devices(environment)
    return Ranks(num_nodes=number(environment.get(NUM_NODES)), num_processes=processes)


def _without_launcher(words: Sequence[str]) -> list[str]:
    """What torchrun starts; the words themselves without it."""
    if (
        len(words) > 2
        and PurePath(words[0]).name.startswith("python")
        and words[1] == "-m"
        and words[2] in TORCH_LAUNCHERS
    ):
        words = words[2:]
    rest = list(words)
    if not rest or PurePath(rest[0]).name not in TORCH_LAUNCHERS:
        return rest
    rest.pop(0)
    while rest and rest[0].startswith("-"):
        name, separator, _ = rest.pop(0).lstrip("-").replace("-", "_").partition("=")
        if not separator and name not in SWITCHES and rest and not rest[0].startswith("-"):
            rest.pop(0)
    return rest


def _task(words: Sequence[str]) -> tuple[Task | None, list[str]]:
    """(task, arguments) of `megatron sft ...`, `swift export ...`, `python .../sft.py ...` or its own program."""
    words = list(words)
    if words and PurePath(words[0]).name.startswith("python"):
        words = words[1:]
        words = words[1:] if words[:1] == ["-m"] else words
    if not words:
        return None, []
    program = PurePath(words[0]).name
    if program in ("megatron", "swift", "megatron_trainer", "mtj") and len(words) > 1:
        task = _as_task(words[1])
        is_ours = program != "swift" or task == "export"
        return (task, words[2:]) if is_ours else (None, [])
    if OF_SWIFT.search(words[0]):
        return "export", words[1:]
    if "megatron" in words[0] and program.endswith((".py", "pt", "sft", "rlhf", "export")):
        return _as_task(re.split(r"[./]", program.removesuffix(".py"))[-1]), words[1:]
    return None, []


def _as_task(word: str) -> Task | None:
    return next((task for task in EVERY_TASK if task == word), None)


def _devices(environment: Mapping[str, str]) -> int | None:
    """The number of devices in the environment."""
    named = next((environment[name] for name in DEVICES if environment.get(name)), "")
    return len(named.split(",")) if re.fullmatch(r"\d+(,\d+)*,?", named) else None
