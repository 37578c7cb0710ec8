"""What test_parallel.py and test_backend.py run on gloo ranks."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any


def coordinates(**settings: Any) -> dict[str, int]:
    from megatron_trainer import parallel
    from megatron_trainjob.args.tree import TrainArgs

    return asdict(parallel.initialize(TrainArgs(**settings)))


def local_part(tokens: list[int], lengths: list[int] | None, *, padded: int = 0, left: bool = False) -> Any:
    """(tokens, labels, cu_seqlens, has a mask) of this context rank, or what was refused."""
    import torch

    from megatron_trainer import parallel
    from megatron_trainer.data.values import MicroBatch
    from megatron_trainjob.args.tree import TrainArgs

    parallel.initialize(TrainArgs(context_parallel_size=torch.distributed.get_world_size()))
    row = torch.tensor(tokens)[None]
    padding = torch.zeros_like(row, dtype=torch.bool)
    if padded:
        padding[:, :padded] = left
        padding[:, -padded:] = not left
    starts = None if lengths is None else torch.tensor([0, *lengths]).cumsum(0).int()
    batch = MicroBatch(
        tokens_BT=row,
        labels_BT=row + 100,
        loss_weight_BT=row.float(),
        position_ids_BT=row,
        sequence_BT=padding.long().neg(),
        cu_seqlens=starts,
        max_seqlen=row.shape[1],
        attention_mask=torch.zeros(1, 1, row.shape[1], row.shape[1], dtype=torch.bool) if lengths is None else None,
        num_samples=1,
        num_tokens=row.shape[1],
        channels=(None,),
    )
    try:
        part = parallel.local_part(batch)
    except ValueError as err:
        return str(err)
    cu_seqlens = None if part.cu_seqlens is None else part.cu_seqlens.tolist()
    return part.tokens_BT[0].tolist(), part.labels_BT[0].tolist(), cu_seqlens, part.attention_mask is not None


def sum_of_ranks(**settings: Any) -> float:
    """The sum of rank numbers over context ranks."""
    import torch

    from megatron_trainer import parallel
    from megatron_trainjob.args.tree import TrainArgs

    parallel.initialize(TrainArgs(**settings))
    mine = torch.tensor([float(torch.distributed.get_rank())])
    return float(parallel.sum_over_context(mine))


def random_state_round_trip() -> bool:
    """Whether every generator draws the same again after its state was put back."""
    import random

    import numpy as np
    import torch
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    from megatron_trainer import backend as backends
    from megatron_trainer import parallel
    from megatron_trainjob.args.tree import TrainArgs

    backend = backends.select()
    parallel.initialize(TrainArgs(seed=5))

    def draw() -> list[float]:
        with get_cuda_rng_tracker().fork():
            forked = float(torch.rand(1))
        return [random.random(), float(np.random.rand()), float(torch.rand(1)), forked]

    state = backend.rng_state()
    first = draw()
    draw()
    backend.set_rng_state(state)
    return draw() == first


def facts() -> dict[str, Any]:
    import torch

    from megatron_trainer import backend as backends

    backend = backends.select()
    backend.install()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again: a worker has held more before
    before = backend.peak_memory_bytes()
    ballast = torch.ones(64 * 2**20)
    grown = backend.peak_memory_bytes() - before
    return {
        "name": backend.name,
        "collective": backend.collective,
        "layers": backend.layer_impl,
        "device": str(backend.device),
        "created_on": str(torch.zeros(1, device="cuda").device),
        "moved_to": str(torch.zeros(1).to("cuda:0").device),
        "pinned": torch.zeros(1, pin_memory=True).sum().item(),
        "is_available": torch.cuda.is_available(),
        "type": torch.zeros(1).type(),
        "peak_flops": backend.peak_flops(torch.float32),
        "device_name": backend.device_name(),
        "grown": grown,
        "ballast": ballast.numel() * 4,
    }


def uneven(op: str) -> list[float]:
    """Parts of 1 and 3 elements gathered, or scattered after a sum."""
    import torch
    import torch.distributed as dist

    rank = dist.get_rank()
    sizes = [1, 3]
    if op == "gather":
        parts = [torch.zeros(n) for n in sizes]
        dist.all_gather(parts, torch.full((sizes[rank],), float(rank + 1)), group=dist.group.WORLD)
        return torch.cat(parts).tolist()
    output = torch.zeros(sizes[rank])
    dist.reduce_scatter(output, [torch.full((n,), float(rank + 1)) for n in sizes], group=dist.group.WORLD)
    return output.tolist()


def adam_steps_after_loading() -> tuple[list[float], bool]:
    """Step counters of a restored optimizer, and whether two parameters share one."""
    import torch
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.transformer import TransformerConfig

    from megatron_trainer import parallel
    from megatron_trainjob.args.tree import TrainArgs

    parallel.initialize(TrainArgs())
    config = TransformerConfig(num_layers=1, hidden_size=4, num_attention_heads=1)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    wrapped = DistributedDataParallel(config, DistributedDataParallelConfig(use_distributed_optimizer=True), model)
    settings = OptimizerConfig(optimizer="adam", lr=0.1, use_distributed_optimizer=True, params_dtype=torch.float32)
    optimizer = get_megatron_optimizer(settings, [wrapped])
    for _ in range(3):
        wrapped.zero_grad_buffer()
        wrapped(torch.ones(1, 4)).sum().backward()
        optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    steps = [state["step"] for o in optimizer.chained_optimizers for state in o.optimizer.state.values()]
    return [float(step) for step in steps], len({step.data_ptr() for step in steps}) < len(steps)


def raise_error() -> None:
    raise ValueError("a rank that raises")
