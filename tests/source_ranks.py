"""What a rank of a gang does in tests of where models come from."""

from __future__ import annotations

from typing import Any


def train_from_hub(cache: str, mapping: dict[str, object]) -> Any:
    """A run that finds the hub's repositories in this cache."""
    from huggingface_hub import constants

    import tiny_run

    before = constants.HF_HUB_CACHE
    constants.HF_HUB_CACHE = cache
    try:
        return tiny_run.train_rank(mapping, "sft", None, {"resume": "Never"})
    finally:
        constants.HF_HUB_CACHE = before


def rotary_scaling(directory: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The rotary part of the model's configuration as it is trained."""
    from megatron_trainer.models.spec import read_model
    from megatron_trainjob.args.tree import TrainArgs

    return dict(read_model(directory, TrainArgs(model=directory, **settings)).hf_config.rope_parameters)
