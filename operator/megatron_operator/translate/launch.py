"""Finds the commands of a script that start a training or an export, with their numbers of nodes and processes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from megatron_operator.translate.shell import WRAPPERS, Invocation, is_reader, passed_on, starts
from megatron_trainjob.args.field import EVERY_TASK, Task
from megatron_trainjob.environment import NUM_NODES, PROCESSES_PER_NODE

LAUNCHERS = ("torchrun", "torch.distributed.run", "torch.distributed.launch")
LAUNCHER_SWITCHES = ("standalone", "no_python", "module", "m")
FOUND_BY_SHELL = re.compile(r"\$\((?:which|command -v)\s+([^\s)]+)\)")
DEVICES = ("CUDA_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
VARIABLE_NAMES = {PROCESSES_PER_NODE: "nproc_per_node", NUM_NODES: "nnodes"}


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A found command: its task, its arguments, and its sizes (None: not given)."""

    task: Task
    words: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    num_nodes: int | None = None
    num_processes: int | None = None
    source: str = ""


def find(commands: Iterable[Invocation]) -> list[Launch]:
    """Every command that trains or exports, in order."""
    return [launch for command in commands for launch in _recognized(command)]


def unread(commands: Iterable[Invocation]) -> list[str]:
    """The commands that name a training behind an unknown program, verbatim."""
    return [" ".join(each.words) for each in commands if not any(_recognized(each)) and _names_training(each.words)]


def _names_training(words: Sequence[str]) -> bool:
    return not is_reader(words[0]) and any(_task(words[index:])[0] for index in range(1, len(words)))


def _recognized(command: Invocation) -> Iterator[Launch]:
    words = [FOUND_BY_SHELL.sub(r"\1", word) for word in command.words]
    environment = dict(command.environment)
    while words and (words[0] in WRAPPERS or re.match(r"[A-Za-z_]\w*=", words[0])):
        name, separator, value = words.pop(0).partition("=")
        environment |= {name: value} if separator else {}
    for start in starts(words):
        options, started = _without_launcher(words[start:])
        task, rest = _task(started)
        if task is not None:
            break
    else:
        return
    # srun, docker run, numactl ...: their options belong to another scheduler and are dropped.
    environment |= passed_on(words[:start])
    options = _without_launcher(words)[0] | options
    said = {VARIABLE_NAMES[name]: value for name, value in environment.items() if name in VARIABLE_NAMES}
    said |= options
    yield Launch(
        task=task,
        words=tuple(rest),
        environment=environment,
        num_nodes=_number(said.get("nnodes", "")),
        num_processes=_number(said.get("nproc_per_node", "")) or _devices(environment),
        source=" ".join(command.words[: len(command.words) - len(rest)]),
    )


def _without_launcher(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """(options of torchrun, what it starts); no options and the words themselves without one."""
    if len(words) > 2 and PurePath(words[0]).name.startswith("python") and words[1] == "-m" and words[2] in LAUNCHERS:
        words = words[2:]
    if not words or PurePath(words[0]).name not in LAUNCHERS:
        return {}, list(words)
    options: dict[str, str] = {}
    rest = list(words[1:])
    while rest and rest[0].startswith("-"):
        name, separator, value = rest.pop(0).lstrip("-").replace("-", "_").partition("=")
        if not separator and name not in LAUNCHER_SWITCHES and rest:
            value = rest.pop(0)
        options[name] = value
    return options, rest


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
    if "megatron" in words[0] and program.endswith((".py", "pt", "sft", "rlhf", "export")):
        return _as_task(re.split(r"[./]", program.removesuffix(".py"))[-1]), words[1:]
    return None, []


def _as_task(word: str) -> Task | None:
    return next((task for task in EVERY_TASK if task == word), None)


def _devices(environment: Mapping[str, str]) -> int | None:
    """The number of devices in the environment."""
    named = next((environment[name] for name in DEVICES if environment.get(name)), "")
    return len(named.split(",")) if re.fullmatch(r"\d+(,\d+)*,?", named) else None


def _number(text: str) -> int | None:
    """A number of nodes or processes; the maximum of a torchrun range such as 2:4. None for anything else."""
    found = re.fullmatch(r"(?:\d+:)?([1-9]\d*)", text)
    return int(found[1]) if found else None
