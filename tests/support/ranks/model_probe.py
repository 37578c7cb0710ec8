"""Builds a model under several arguments in one process and tells what became of each. Runs on a gloo rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NUM_TOKENS = 24


@dataclass(frozen=True, kw_only=True)
class Built:
    """config: megatron-core's plain settings. shapes: of the parameters. exported: config.json as an export writes it.

    losses: mean next-token loss of a fixed row in training, twice; they differ only under dropout. refusal: why it
    was not built, or "".
    """

    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    exported: Mapping[str, Any]
    losses: tuple[float, ...]
    refusal: str = ""


def build_all(directory: Path, variants: Mapping[str, Mapping[str, Any]]) -> dict[str, Built]:
    """By the name of each variant, what its arguments make of the model in `directory`."""
    return {name: _build(directory, given) for name, given in variants.items()}


def _build(directory: Path, given: Mapping[str, Any]) -> Built:
    from megatron_trainer import backend as backends
    from megatron_trainer import parallel
    from megatron_trainer.convert.initialize import initialize_weights
    from megatron_trainer.convert.load import load_weights
    from megatron_trainer.failure import InvalidInput
    from megatron_trainer.models.build import build_model
    from megatron_trainer.models.spec import read_model
    from megatron_trainjob.args.parse import Refused, parse

    needed = {"model": str(directory), "dataset": ["none"], "train_iters": 1, "torch_dtype": "float32"}
    parsed = parse({**needed, **given}, task="pt")
    try:
        if isinstance(parsed, Refused):
            raise InvalidInput(parsed.violations)
        spec = read_model(directory, parsed.args)
    except InvalidInput as refused:
        return Built(config={}, shapes={}, exported={}, losses=(), refusal=str(refused))
    parallel.initialize(parsed.args)
    (model,) = build_model(spec, parsed.args, backends.select())
    if parsed.args.no_initialization:
        load_weights([model], spec)
    else:
        initialize_weights([model], spec, seed=parsed.args.seed)
    return Built(
        config={
            name: value for name, value in vars(model.config).items() if isinstance(value, bool | int | float | str)
        },
        shapes={name: tuple(parameter.shape) for name, parameter in model.named_parameters()},
        exported=dict(spec.config),
        losses=(_loss(model, spec), _loss(model, spec)),
    )


def _loss(model: Any, spec: Any) -> float:
    import torch

    from megatron_trainer.models.logits import mask_padded_columns

    row = torch.randint(0, spec.vocab_size, (1, NUM_TOKENS), generator=torch.Generator().manual_seed(3))
    positions = torch.arange(NUM_TOKENS)[None]
    with torch.no_grad():
        logits_BTV = mask_padded_columns(model(row, positions, None), spec)
    return float(torch.nn.functional.cross_entropy(logits_BTV[0, :-1].float(), row[0, 1:]))
