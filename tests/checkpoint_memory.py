"""How much memory a save takes beyond what it saves, as torch counts it. Runs on a rank of a gang."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


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

    from megatron_trainer import setup
    from megatron_trainer.checkpoint.folder import Owner, claim
    from megatron_trainer.checkpoint.save import SavePolicy, Saver
    from megatron_trainer.environment import Environment
    from megatron_trainer.models.spec import read_model
    from megatron_trainer.state import TrainState
    from megatron_trainjob.args.parse import parse

    args = parse(mapping, task="sft").args
    assert args is not None
    backend = setup.start_process(Environment(device="cpu"), args)
    engine = setup.build_engine(args, read_model(args.model, args), backend)
    owner = Owner(job_uid="", attempt=0)
    if dist.get_rank() == 0:
        claim(folder, owner)
    policy = SavePolicy(
        save=folder,
        layout=setup.layout(),
        train_type="full",
        with_optimizer=with_optimizer,
        with_rng=False,
        owner=owner,
        in_background=args.async_save,
        on_termination=False,
        limit=None,
    )
    saver = Saver(engine, backend, policy)
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
    sizes = [p.nbytes for p in engine.models[0].parameters()]
    return Memory(peak=peak, model=sum(sizes), largest=max(sizes))
