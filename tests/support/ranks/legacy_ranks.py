"""Writes a model as Megatron's older format: a pickle per rank, with arguments and a class that would run a command."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path
from typing import Any


class Forged:
    """Would leave a file behind if it were unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def write(model: Path, target: Path, settings: dict[str, Any], *, marker: Path) -> None:
    """The checkpoint of iteration 1 in `target`, in the layout of the settings."""
    import torch

    from megatron_trainer import parallel
    from megatron_trainer.convert.load import load_weights
    from tests.support.ranks.conversion import built

    chunks, spec = built(model, {"torch_dtype": "float32", **settings})
    load_weights(chunks, spec)
    here = parallel.coordinates()
    name = f"mp_rank_{here.tensor:02d}" + (f"_{here.pipeline:03d}" if here.pipeline_size > 1 else "")
    folder = target / "iter_0000001" / name
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "args": Namespace(tensor_model_parallel_size=here.tensor_size, dtype=torch.float32),
        "checkpoint_version": 3.0,
        "iteration": 1,
        "model": {**chunks[0].state_dict(), "decoder.layers.0.mlp._extra_state": None},
        "rng_state": [Forged(marker)],
    }
    torch.save(content, folder / "model_optim_rng.pt")
    (target / "latest_checkpointed_iteration.txt").write_text("1")
