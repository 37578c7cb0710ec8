"""A save from the GPU takes one tensor at a time through host memory, and what comes back is the same."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu

NUM_TENSORS = 8
MARGIN_BYTES = 8 * 2**20


def held_bytes() -> int:
    """What this process holds of its own in host memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def most_held_while(action) -> int:
    """Bytes of host memory beyond what was held before, sampled while the action runs."""
    before = most = held_bytes()
    done = threading.Event()

    def sample() -> None:
        nonlocal most
        while not done.wait(0.001):
            most = max(most, held_bytes())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        action()
    finally:
        done.set()
        thread.join()
    return most - before


def test_a_save_holds_one_tensor_in_host_memory(tmp_path: Path):
    import torch
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing import ShardedTensor

    from megatron_trainer.checkpoint import shards

    def state(tensors):
        """Every second one in halves, as gate and up."""
        named = {f"{i}.{j}": part for i, each in enumerate(tensors) for j, part in enumerate(each.chunk(1 + i % 2))}
        return {name: ShardedTensor.from_rank_offsets(name, part) for name, part in named.items()}

    def save(folder: Path) -> None:
        folder.mkdir()
        planned = shards.plan(state(tensors), folder, num_files=2).shards(None)
        planned.complete([planned.write()])

    tensors = [torch.randn(4096, 4096, device="cuda") for _ in range(NUM_TENSORS)]
    save(tmp_path / "first")  # what CUDA and Megatron set up once
    assert most_held_while(lambda: save(tmp_path / "saved")) <= tensors[0].nbytes + MARGIN_BYTES
    loaded = dist_checkpointing.load(state([torch.zeros_like(each) for each in tensors]), str(tmp_path / "saved"))
    assert loaded.keys() == state(tensors).keys()
    assert all(torch.equal(loaded[name], each.data) for name, each in state(tensors).items())
