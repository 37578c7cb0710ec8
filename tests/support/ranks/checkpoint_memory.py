"""How much memory a save takes beyond what it saves, as torch counts it. Runs on a gloo rank."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.support.checkpoint import checkpoint_damage


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes. peak: the most that a save held beyond what was there; model: this rank's; largest: of its parameters."""

    peak: int
    model: int
    largest: int


def of_saving(mapping: dict[str, Any], folder: Path, *, with_optimizer: bool) -> Memory:
    """Of the second save of a run with these arguments before its first step."""
    import torch
    import torch.distributed as dist

    from megatron_trainer.checkpoint.folder import claim
    from megatron_trainer.checkpoint.save import Saver
    from megatron_trainer.state import TrainState

    bench = checkpoint_damage.build(mapping, folder)
    if dist.get_rank() == 0:
        claim(folder, bench.policy.owner)
    policy = replace(bench.policy, with_optimizer=with_optimizer, with_rng=False, in_background=bench.args.async_save)
    saver = Saver(bench.engine, bench.backend, policy)
    # Also creates the optimizer's state, and the memory for the copies of a save in the background.
    saver.start(TrainState(iteration=1), None)
    saver.finish()
    with torch.profiler.profile(profile_memory=True) as profile:
        saver.start(TrainState(iteration=2), None)
        saver.finish()
    held = peak = 0
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for _, change in sorted((event.start_ns(), event.nbytes()) for event in events):
        held += change
        peak = max(peak, held)
    sizes = [p.nbytes for p in bench.engine.models[0].parameters()]
    return Memory(peak=peak, model=sum(sizes), largest=max(sizes))
