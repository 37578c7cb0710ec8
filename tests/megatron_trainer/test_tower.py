"""The vision tower as it is built for training, without ranks."""

import json
from pathlib import Path

import pytest
import torch

from megatron_trainer import backend
from megatron_trainer.models.spec import read_model
from megatron_trainer.models.tower import build_tower
from megatron_trainjob.args.tree import TrainArgs
from tests.support.models.tiny_model import MODELS, SEEING_MODELS, config_of


@pytest.mark.parametrize("name", sorted(SEEING_MODELS))
def test_reentrant_recomputation_trains_layers_behind_frozen_patches(tmp_path: Path, name: str):
    """As under LoRA: the input of the first layer has no gradient by itself, and its weights would get none."""
    (tmp_path / "config.json").write_text(
        json.dumps({**config_of(name).to_dict(), "model_type": MODELS[name][0]}, default=str)
    )
    args = TrainArgs(gradient_checkpointing_kwargs={"use_reentrant": True}, torch_dtype="float32")
    spec = read_model(tmp_path, args)
    tower = build_tower(spec, args, backend.select()).train()
    tower.requires_grad_(False)
    tower.blocks[0].requires_grad_(True)
    pixels = torch.randn(24, spec.model.vision.patch_values)
    tower(pixels, grid_thw=torch.tensor([[1, 4, 6]])).pooler_output.sum().backward()
    assert all(parameter.grad is not None for parameter in tower.blocks[0].parameters())
