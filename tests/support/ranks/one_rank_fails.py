"""Runs in which one rank fails in some phase of a save, a load or an export, and ends as a rank's process does.

The faults lie below our code: in Megatron's functions, in the operating system, or in what the ranks give to Megatron.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.support.ranks.silent_runs import _words
from tests.support.ranks.tiny_run import TinyRun, train_rank

STRATEGY = "megatron.core.dist_checkpointing.strategies.torch"
FAULTS = {
    "what is saved is collected": "megatron_trainer.checkpoint.contents.random_state",
    "a save is planned": f"{STRATEGY}.mcore_to_pyt_state_dict",
    "a checkpoint is read": f"{STRATEGY}.mcore_to_pyt_state_dict",
    "tensors are gathered for an export": "megatron_trainer.convert.stream.takes_part",
}
"""What is called while the other rank goes on to a collective."""


def overlapping_rank(mapping: dict[str, object], env: dict[str, Any]) -> TinyRun:
    """A run in which every rank says that it is the one to write what all have: shards that overlap."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

    from megatron_trainer.checkpoint import contents

    model_state = contents.model_state

    def claimed(*given: Any) -> Any:
        state = model_state(*given)
        for part in nested_values(state):
            if isinstance(part, ShardedTensor | ShardedTensorFactory):
                part.replica_id = (0, 0, 0)
        return state

    with patch.object(contents, "model_state", claimed):
        return train_rank(mapping, "sft", None, env)


def failing_rank(mapping: dict[str, object], fault: str, bad_rank: int, records: Path, env: dict[str, Any]) -> None:
    """A run in which one rank fails at its first call of a function, and whose ranks end with their exit codes."""
    import torch.distributed as dist

    from megatron_trainer import environment
    from megatron_trainer.environment import Environment
    from megatron_trainer.process import run

    rank = dist.get_rank()
    place = Environment(
        rank=rank,
        world_size=dist.get_world_size(),
        device="cpu",
        failure_file=records / f"rank-{rank}.json",
        **env,
    )
    flags = [part for name, value in mapping.items() for part in (f"--{name}", *_words(value))]
    with (
        _failing(fault) if rank == bad_rank else contextlib.nullcontext(),
        patch.object(environment, "read", lambda: place),
    ):
        os._exit(run.main(["sft", *flags]))


@contextlib.contextmanager
def _failing(fault: str) -> Iterator[None]:
    with patch(FAULTS[fault], side_effect=RuntimeError("was not to be")):
        yield


def exchange(folder: Path, harm: str) -> list[str]:
    """What two nodes say that exchange a file each, of which the first is harmed; each also receives two in a row."""
    import torch.distributed as dist

    from megatron_trainer.checkpoint.nodes import Nodes, PeerFailure
    from megatron_trainjob.checkpoint_folder import record_of

    group = dist.new_group(backend="gloo")
    nodes, rank = Nodes(num_nodes=2, group=group), dist.get_rank()
    own, theirs = folder / f"own-{rank}", folder / f"taken-{rank}" / "file"
    own.write_bytes(bytes([rank]) * 1000)
    records = nodes.gathered(record_of(own))
    if rank == 0:
        _harms[harm](own)
    if not (harm == "nowhere to write" and rank == 1):
        theirs.parent.mkdir()

    def act() -> None:
        problems = nodes.exchange({own: records[rank]}, 1 - rank, {theirs: records[1 - rank]}, 1 - rank)
        for number in range(2):
            if rank == 0:
                problems.append(nodes.send(own, [(0, 500), (500, 500)], 1))
            else:
                problems.append(nodes.receive(theirs.with_name(str(number)), [(0, 500), (500, 500)], 0))
        if any(problems):
            raise OSError("; ".join(filter(None, problems)))

    try:
        nodes.agreed(act)
    except PeerFailure as err:
        return [str(err)]
    return []


_harms: dict[str, Callable[[Path], object]] = {
    "none": lambda _: None,
    "missing": lambda path: path.unlink(),
    "shorter": lambda path: os.truncate(path, 600),
    "nowhere to write": lambda _: None,
}


def memory_rank(mapping: dict[str, object], memory: Path) -> TinyRun:
    """A run with memory checkpoints in which the second rank cannot make its folder."""
    import torch.distributed as dist

    from megatron_trainer.checkpoint.node_memory import NodeMemory

    (memory / "file").write_text("")
    place = {"memory_folder": memory / "node", "memory_interval": 2}
    bad = patch.object(NodeMemory, "aside", lambda _, iteration: memory / "file" / str(iteration))
    with bad if dist.get_rank() == 1 else contextlib.nullcontext():
        return train_rank(mapping, "sft", None, place)
