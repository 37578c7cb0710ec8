"""How many nodes and processes a launcher or a batch system is given: torchrun, srun, mpirun, deepspeed ..."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from megatron_operator.translate import hosts
from megatron_operator.translate.hosts import Files, no_file
from megatron_operator.translate.programs import program

TORCH_SWITCHES = ("standalone", "no_python", "module", "m", "run_path")
# Options without a value of the launchers below; a value behind any other option is one of it.
SWITCHES = frozenset((*TORCH_SWITCHES, "multi_gpu", "exclusive", "allow_run_as_root", "oversubscribe", "overlap"))
COUNTS = (
    "nnodes",
    "nproc_per_node",
    "nodes",
    "N",
    "gpus_per_node",
    "gres",
    "gpus",
    "G",
    "np",
    "n",
    "npernode",
    "ppn",
) + (
    "num_nodes",
    "num_gpus",
    "num_machines",
    "num_processes",
)
OF_NODES = frozenset(("nnodes", "nodes", "N", "num_nodes", "num_machines"))
FILES = ("hostfile", "machinefile", "f", "config_file")
"""Options that name a file of hosts, or a configuration of accelerate."""
TORCH_LAUNCHERS = ("torchrun", "torch.distributed.run", "torch.distributed.launch")


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """num_nodes, num_processes of a node (None: not said); used: the options that say it."""

    num_nodes: int | None = None
    num_processes: int | None = None
    used: tuple[str, ...] = field(default=())


def options_of(words: Sequence[str]) -> dict[str, str]:
    """The options among the words, without dashes in front and with `_` within: `--gres=gpu:8`, `-N 2`, `-N2`."""
    found: dict[str, str] = {}
    for index, word in enumerate(words):
        short = re.fullmatch(r"-([A-Za-z])(\d+)", word)
        if short:
            found[short[1]] = short[2]
        elif word.startswith("-"):
            name, separator, value = word.lstrip("-").partition("=")
            name = name.replace("-", "_")
            after = words[index + 1] if words[index + 1 :] else ""
            has_value = not separator and name not in SWITCHES and after and not after.startswith("-")
            found[name] = after if has_value else value
    return found


def requested(words: Sequence[str], files: Files = no_file) -> Ranks:
    """What the launcher among the words says, the innermost first. files: the text of a file that is known."""
    for index in reversed(range(len(words))):
        reader = LAUNCHERS.get(program(words[index]))
        if reader is not None:
            ranks = reader(options_of(words[index + 1 :]), files)
            if ranks.num_nodes or ranks.num_processes:
                return ranks
    return Ranks()


def of_header(options: Sequence[str]) -> Ranks:
    """What the header of a batch script says: `#SBATCH --nodes=4`."""
    given = options_of([word for option in options for word in option.split()])
    slurm, pbs = _slurm(given, no_file), _pbs(given.get("l", ""))
    return slurm if slurm.used else pbs


def unread(words: Sequence[str], files: Files = no_file) -> list[str]:
    """The options of launchers with a number of nodes or processes that cannot be read: `--nnodes=$N`, `--hostfile x`
    of a file that is not known here."""
    if not any(program(word) in LAUNCHERS for word in words):
        return []
    options = options_of(words)
    found = {name: value for name, value in options.items() if name in COUNTS and "$" in value}
    found |= {name: value for name, value in options.items() if name in FILES and _is_unread(name, files(value))}
    return [f"{'--' if len(name) > 1 else '-'}{name}={value}" for name, value in found.items()]


def _is_unread(name: str, text: str | None) -> bool:
    """Whether the file has no single number of processes for its nodes."""
    if text is None:
        return True
    if name == "config_file":
        return "num_processes" not in hosts.numbers(text)
    return hosts.slots(hosts.of_text(text)) is None


def number(text: str | None) -> int | None:
    """A number of nodes or processes; the maximum of a torchrun range such as 2:4. None for anything else."""
    found = re.fullmatch(r"(?:\d+[:-])?([1-9]\d*)", text or "")
    return int(found[1]) if found else None


def _torch(options: Mapping[str, str], files: Files) -> Ranks:
    return Ranks(num_nodes=number(options.get("nnodes")), num_processes=number(options.get("nproc_per_node")))


def _slurm(options: Mapping[str, str], files: Files) -> Ranks:
    nodes_name = next((name for name in ("nodes", "N") if number(options.get(name))), "")
    nodes = number(options.get(nodes_name))
    per_node = {"gpus_per_node": _last_number(options.get("gpus_per_node"))} | {
        name: next((_last_number(each) for each in options.get(name, "").split(",") if "gpu" in each), None)
        for name in ("gres", "tres_per_node")
    }
    total = _last_number(options.get("gpus") or options.get("G"))
    tasks_name, tasks = _tasks(options, nodes)
    name = next((name for name, value in per_node.items() if value), "")
    found = per_node.get(name) or (total // (nodes or 1) if total else None)
    used = [nodes_name, name or ("gpus" if total else "")]
    if found is None and tasks is not None:
        found = tasks * (_last_number(options.get("gpus_per_task")) or 1)
        used = [nodes_name, tasks_name, "gpus_per_task"]
    return Ranks(num_nodes=nodes, num_processes=found, used=tuple(name for name in used if name in options))


def _tasks(options: Mapping[str, str], nodes: int | None) -> tuple[str, int | None]:
    """(option, tasks of a node) where each is a process with GPUs of its own; one alone may start the others."""
    for name in ("ntasks_per_node", "tasks_per_node", "ntasks", "n"):
        tasks = number(options.get(name))
        each = tasks if tasks is None or name.endswith("per_node") else tasks // (nodes or 1)
        if each is not None and (each > 1 or "gpus_per_task" in options):
            return name, each
    return "", None


def _pbs(chunks: str) -> Ranks:
    """`-l select=2:ncpus=64:ngpus=8`, or `-l nodes=2:ppn=8:gpus=8`."""
    found = re.search(r"\b(?:select|nodes)=(\d+)", chunks)
    gpus = re.search(r"\bn?gpus=(\d+)", chunks)
    if found is None:
        return Ranks()
    return Ranks(num_nodes=int(found[1]), num_processes=int(gpus[1]) if gpus else None, used=("l",))


def _mpi(options: Mapping[str, str], files: Files) -> Ranks:
    total = next((number(options[name]) for name in ("np", "n", "c") if name in options), None)
    named = [host for name in ("H", "host", "hosts") for host in options.get(name, "").split(",") if host]
    listed = hosts.of_text("\n".join(named)) or _of_file(options, files)
    mapped = re.search(r"ppr:(\d+):node", options.get("map_by", ""))
    each = number(mapped[1]) if mapped else number(options.get("npernode") or options.get("N") or options.get("ppn"))
    nodes = len(listed) or (total // each if total and each else None)
    processes = each or (total // nodes if total and nodes else total or hosts.slots(listed))
    return Ranks(num_nodes=nodes, num_processes=processes)


def _deepspeed(options: Mapping[str, str], files: Files) -> Ranks:
    """--num_nodes and --num_gpus, else the hosts of --hostfile, of which --include and --exclude choose."""
    chosen = hosts.chosen(_of_file(options, files), options.get("include", ""), options.get("exclude", ""))
    nodes = number(options.get("num_nodes")) or len(chosen) or None
    return Ranks(num_nodes=nodes, num_processes=number(options.get("num_gpus")) or hosts.slots(chosen))


def _of_file(options: Mapping[str, str], files: Files) -> hosts.Hosts:
    name = next((options[name] for name in FILES if name in options), "")
    return hosts.of_text(files(name) or "") if name else {}


def _accelerate(options: Mapping[str, str], files: Files) -> Ranks:
    """Options win over those of --config_file."""
    name = options.get("config_file", "")
    of_file = hosts.numbers((files(name) if name else "") or "")
    nodes, total = (
        number(options.get(each)) or number(of_file.get(each)) for each in ("num_machines", "num_processes")
    )
    return Ranks(num_nodes=nodes, num_processes=total // (nodes or 1) if total else None)


def _last_number(text: str | None) -> int | None:
    """8 of `gpu:a100:8`, `a100:8` or `8`."""
    return number((text or "").rpartition(":")[2])


LAUNCHERS: Mapping[str, Callable[[Mapping[str, str], Files], Ranks]] = {
    **dict.fromkeys(TORCH_LAUNCHERS, _torch),
    **dict.fromkeys(("srun", "salloc", "sbatch"), _slurm),
    **dict.fromkeys(("mpirun", "mpiexec", "horovodrun"), _mpi),
    "deepspeed": _deepspeed,
    "accelerate": _accelerate,
}
