"""Reads a checkpoint in any layout and compares the model's logits with transformers'. Runs on a gloo rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def difference(mapping: dict[str, Any], save: Path, reference: Path) -> float:
    """The largest difference from the logits in `reference` (parity.make_reference), the same on every rank.

    mapping: arguments of a run. save: the folder whose newest checkpoint is resumed from, optimizer included.
    """
    import torch
    import torch.distributed as dist

    from megatron_trainer import parallel
    from megatron_trainer.checkpoint import load
    from megatron_trainer.environment import Environment
    from megatron_trainer.models.spec import read_model
    from megatron_trainer.train import setup
    from megatron_trainjob.args.parse import parse
    from tests.support.ranks import parity

    args = parse(mapping, task="sft").args
    assert args is not None
    backend = setup.start_process(Environment(device="cpu"), args)
    spec = read_model(args.model, args)
    engine = setup.build_engine(args, spec, backend)
    found = load.find(save)
    assert found is not None
    policy = load.LoadPolicy(layout=parallel.layout(), with_optimizer=True, with_rng=True)
    assert load.resume(engine, found, backend, policy).iteration == found.iteration
    logits, _ = parity.run_rows(engine.chunks, spec, packed=False, reference=torch.load(reference))
    largest = torch.tensor(logits)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return float(largest)
