"""The reader in threads loads what torch's own loads, however much may be read ahead."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.distributed import checkpoint
from torch.distributed.checkpoint.api import CheckpointException

from megatron_trainer.checkpoint import parallel_read

KINDS = (torch.float32, torch.bfloat16, torch.int64)


@pytest.fixture
def saved(tmp_path: Path) -> dict[str, torch.Tensor]:
    """Tensors of many sizes and types, written to tmp_path."""
    draw = torch.Generator().manual_seed(3)
    state = {
        f"{index}": torch.randint(-99, 99, (index + 1, 3 + index % 4), generator=draw).to(KINDS[index % len(KINDS)])
        for index in range(40)
    }
    checkpoint.save(state | {"scalar": torch.tensor(7.0), "text": "kept"}, checkpoint_id=tmp_path, no_dist=True)
    return state


@pytest.mark.parametrize("most_bytes", [1, 4000, 1 << 30])
def test_every_tensor_is_as_it_was_saved(saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_bytes: int):
    monkeypatch.setattr(parallel_read, "MOST_BYTES", most_bytes)
    loaded = {name: torch.zeros_like(each) for name, each in saved.items()} | {"scalar": torch.zeros(()), "text": ""}
    with parallel_read.in_threads():
        checkpoint.load(loaded, checkpoint_id=tmp_path, no_dist=True)
    assert all(torch.equal(loaded[name], each) for name, each in saved.items())
    assert (loaded["scalar"], loaded["text"]) == (7.0, "kept")


def test_a_file_that_ends_early_is_an_error(saved, tmp_path: Path):
    for file in tmp_path.glob("*.distcp"):
        file.write_bytes(file.read_bytes()[:-2000])
    loaded = {name: torch.zeros_like(each) for name, each in saved.items()}
    with parallel_read.in_threads(), pytest.raises(CheckpointException):
        checkpoint.load(loaded, checkpoint_id=tmp_path, no_dist=True)
