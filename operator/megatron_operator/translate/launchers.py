"""How many nodes and processes a launcher or a batch system is given: torchrun, srun, mpirun, deepspeed ..."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

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


def requested(words: Sequence[str]) -> Ranks:
    """What the launcher among the words says, the innermost first."""
    for index in reversed(range(len(words))):
        reader = LAUNCHERS.get(program(words[index]))
        if reader is not None:
            ranks = reader(options_of(words[index + 1 :]))
            if ranks.num_nodes or ranks.num_processes:
                return ranks
    return Ranks()


def of_header(options: Sequence[str]) -> Ranks:
    """What the header of a batch script says: `#SBATCH --nodes=4`."""
    return _slurm(options_of([word for option in options for word in option.split()]))


def unread(words: Sequence[str]) -> list[str]:
    """The options of launchers with a number of nodes or processes that only a running shell knows, `--nnodes=$N`."""
    if not any(program(word) in LAUNCHERS for word in words):
        return []
    found = {name: value for name, value in options_of(words).items() if name in COUNTS and "$" in value}
    return [f"{'--' if len(name) > 1 else '-'}{name}={value}" for name, value in found.items()]


def number(text: str | None) -> int | None:
    """A number of nodes or processes; the maximum of a torchrun range such as 2:4. None for anything else."""
    found = re.fullmatch(r"(?:\d+[:-])?([1-9]\d*)", text or "")
    return int(found[1]) if found else None


def _torch(options: Mapping[str, str]) -> Ranks:
    return Ranks(num_nodes=number(options.get("nnodes")), num_processes=number(options.get("nproc_per_node")))


def _slurm(options: Mapping[str, str]) -> Ranks:
    nodes_name = next((name for name in ("nodes", "N") if number(options.get(name))), "")
    nodes = number(options.get(nodes_name))
    per_node = {name: _last_number(options.get(name)) for name in ("gpus_per_node", "gres")}
    if "gpu" not in options.get("gres", "gpu"):
        per_node["gres"] = None
    total = _last_number(options.get("gpus") or options.get("G"))
    name = next((name for name, value in per_node.items() if value), "")
    found = per_node.get(name) or (total // (nodes or 1) if total else None)
    used = [nodes_name, name or ("gpus" if total else "")]
    return Ranks(num_nodes=nodes, num_processes=found, used=tuple(filter(None, used)))


def _mpi(options: Mapping[str, str]) -> Ranks:
    total = next((number(options[name]) for name in ("np", "n", "c") if name in options), None)
    hosts = [host for name in ("H", "host", "hosts") for host in options.get(name, "").split(",") if host]
    mapped = re.search(r"ppr:(\d+):node", options.get("map_by", ""))
    each = number(mapped[1]) if mapped else number(options.get("npernode") or options.get("N") or options.get("ppn"))
    nodes = len(hosts) or (total // each if total and each else None)
    return Ranks(num_nodes=nodes, num_processes=each or (total // nodes if total and nodes else total))


def _deepspeed(options: Mapping[str, str]) -> Ranks:
    return Ranks(num_nodes=number(options.get("num_nodes")), num_processes=number(options.get("num_gpus")))


def _accelerate(options: Mapping[str, str]) -> Ranks:
    nodes, total = number(options.get("num_machines")), number(options.get("num_processes"))
    return Ranks(num_nodes=nodes, num_processes=total // (nodes or 1) if total else None)


def _last_number(text: str | None) -> int | None:
    """8 of `gpu:a100:8`, `a100:8` or `8`."""
    return number((text or "").rpartition(":")[2])


LAUNCHERS: Mapping[str, Callable[[Mapping[str, str]], Ranks]] = {
    **dict.fromkeys(TORCH_LAUNCHERS, _torch),
    **dict.fromkeys(("srun", "salloc", "sbatch"), _slurm),
    **dict.fromkeys(("mpirun", "mpiexec", "horovodrun"), _mpi),
    "deepspeed": _deepspeed,
    "accelerate": _accelerate,
}
