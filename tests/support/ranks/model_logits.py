"""Logits of whole models for one row of tokens: ours on a gloo rank, with our export, and transformers' own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NUM_TOKENS = 48


def row(vocab_size: int) -> Any:
    """int64 [1, NUM_TOKENS], the same in every process."""
    import torch

    return torch.randint(0, vocab_size, (1, NUM_TOKENS), generator=torch.Generator().manual_seed(11))


def ours(directories: Mapping[str, Path]) -> dict[str, Any]:
    """By name, float32 [NUM_TOKENS, V] on the only rank, or why the model was refused."""
    found = {name: ours_of(directory) for name, directory in directories.items()}
    return {name: "; ".join(one) if isinstance(one, list) else one for name, one in found.items()}


def ours_of(directory: Path, *, export: Path | None = None) -> Any:
    """float32 [NUM_TOKENS, V], or the list of messages why the model is refused. export: where it is written again."""
    import torch

    from megatron_trainer import backend as backends
    from megatron_trainer import parallel
    from megatron_trainer.convert.load import load_weights
    from megatron_trainer.convert.save import save_model
    from megatron_trainer.failure import InvalidInput
    from megatron_trainer.models.build import build_model
    from megatron_trainer.models.spec import read_model
    from megatron_trainjob.args.tree import TrainArgs

    args = TrainArgs(model=str(directory), torch_dtype="float32")
    try:
        spec = read_model(directory, args)
        parallel.initialize(args)
        (model,) = build_model(spec, args, backends.select())
        load_weights([model], spec)
    except InvalidInput as refused:
        return [violation.message for violation in refused.violations]
    if export:
        save_model([model], spec, export)
    with torch.no_grad():
        return model.eval()(row(spec.vocab_size), torch.arange(NUM_TOKENS)[None], None)[0].numpy()


def of_transformers(directory: Path) -> Any:
    """float32 [NUM_TOKENS, V]."""
    import torch
    from transformers import AutoModelForCausalLM

    from tests.support.models.tiny_model import transformers_config

    model = AutoModelForCausalLM.from_pretrained(
        directory, config=transformers_config(directory), dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        return model.eval()(row(model.config.vocab_size), use_cache=False).logits[0].numpy()


def with_keys(source: Path, directory: Path, keys: Mapping[str, Any]) -> Path:
    """A model of the same weights, whose config.json says more."""
    import shutil

    shutil.copytree(source, directory, ignore=shutil.ignore_patterns("reference*", "gradients"))
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **keys}))
    return directory
