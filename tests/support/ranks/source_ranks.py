"""What a gloo rank does in tests of where models come from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def lay_out_hub(root: Path, **revisions: Path) -> Path:
    """A cache of the hub that holds these revisions of one repository, tiny/llama: copies of the folders."""
    repository = root / "models--tiny--llama"
    (repository / "refs").mkdir(parents=True)
    for number, (revision, folder) in enumerate(revisions.items(), start=1):
        commit = f"{number:040x}"
        shutil.copytree(folder, repository / "snapshots" / commit)
        (repository / "refs" / revision).write_text(commit)
    return root


def train_from_hub(cache: str, mapping: dict[str, object]) -> Any:
    """A run that finds the hub's repositories in this cache."""
    from tests.support.ranks import tiny_run

    with _hub_cache(cache):
        return tiny_run.train_rank(mapping, "sft", None, {"resume": "Never"})


def export_from_hub(cache: str, given: dict[str, Any]) -> Any:
    """An export that does."""
    from tests.support.ranks import exporting

    with _hub_cache(cache):
        return exporting.export_here(given)


@contextmanager
def _hub_cache(cache: str) -> Iterator[None]:
    from huggingface_hub import constants

    before = constants.HF_HUB_CACHE
    constants.HF_HUB_CACHE = cache
    try:
        yield
    finally:
        constants.HF_HUB_CACHE = before


def rotary_scaling(directory: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The rotary part of the model's configuration as it is trained."""
    from megatron_trainer.models.spec import read_model
    from megatron_trainjob.args.tree import TrainArgs

    return dict(read_model(directory, TrainArgs(model=directory, **settings)).hf_config.rope_parameters)
