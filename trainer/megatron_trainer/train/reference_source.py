"""Where the reference of preference training comes from: a second model, the model without its adapters, or another
adapter. Used once, after the model is built and before a checkpoint is loaded into it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.module import Float16Module
from torch import Tensor, nn

from megatron_trainer.backend import Backend
from megatron_trainer.checkpoint import load as checkpoint_load
from megatron_trainer.convert.adapter import load_adapter
from megatron_trainer.convert.adapter_source import holds_adapter
from megatron_trainer.convert.load import load_weights
from megatron_trainer.engine import Engine
from megatron_trainer.failure import TrainingError
from megatron_trainer.lora.merge import adapters_disabled, original_of
from megatron_trainer.lora.names import is_adapter, named_parameters
from megatron_trainer.models.build import build_model
from megatron_trainer.models.spec import ModelSpec
from megatron_trainer.tasks.reference import Reference, swapped
from megatron_trainjob.args import head
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.checkpoint_folder import Checkpoint
from megatron_trainjob.exit_codes import ExitCode

logger = logging.getLogger(__name__)


def open_reference(args: TrainArgs, spec: ModelSpec, engine: Engine, backend: Backend) -> Reference | None:
    """The reference that the arguments select, None with reference_free. Leaves the engine unchanged. Collective.

    Raises:
        TrainingError: ref_load or ref_adapter_load holds nothing that can be loaded.
    """
    if args.reference_free:
        return None
    if args.train_type == "full":
        return frozen_model(args, spec, backend)
    if args.ref_adapter_load:
        return _other_adapter(args, spec, engine)
    _renew_originals(args, engine)
    return Reference(args=args, spec=spec, chunks=engine.chunks, shown=partial(_without_adapters, engine))


def frozen_model(args: TrainArgs, spec: ModelSpec, backend: Backend) -> Reference:
    """A second model with the weights of ref_load, of load, or of the model, in this order. Collective."""
    models = build_model(spec, args, backend)
    source = Path(args.ref_load) if args.ref_load else None
    if source and (source / "config.json").exists():
        load_weights(models, replace(spec, directory=source))
    else:
        if args.no_initialization:
            load_weights(models, spec)
        _load_base(args, models)
    for model in models:
        model.requires_grad_(requires_grad=False).eval()
    is_half = spec.dtype != torch.float32
    chunks = [Float16Module(model.config, model) if is_half else model for model in models]
    return Reference(args=args, spec=spec, chunks=chunks)


def _load_base(args: TrainArgs, models: list[GPTModel]) -> None:
    """Puts the checkpoint of ref_load or load over the weights, where one is named."""
    for name in ("ref_load", "load"):
        path = getattr(args, name)
        found = checkpoint_load.find(Path(path), recognizes_others=args.auto_detect_ckpt_format) if path else None
        if found is not None:
            logger.info("reference model from=%s", found.path)
            checkpoint_load.read_part(_bare(models), found, "base")
            if name == "load" and not args.finetune:
                logger.warning(
                    "finetune is false: the reference model is what load=%s holds now; ref_load names another", path
                )
            return
        if path and name == "ref_load":
            raise _missing(name, path)


def _bare(models: list[GPTModel]) -> Engine:
    """An engine without optimizer, for reading checkpoints."""
    return Engine(config=models[0].config, models=models, chunks=(), optimizer=None)


def _other_adapter(args: TrainArgs, spec: ModelSpec, engine: Engine) -> Reference:
    """The same model with the weights of ref_adapter_load in place of all trainable parameters."""
    path = Path(str(args.ref_adapter_load))
    trained = [p for _, p in named_parameters(engine.models) if p.requires_grad]
    with swapped(trained, [p.detach().clone() for p in trained]):
        if holds_adapter(path):
            load_adapter(engine.models, spec, args, path)
        else:
            checkpoint_load.read_part(engine, _checkpoint(args, path), "trainable")
        values = [p.detach().clone() for p in trained]
    shown = partial(_with_values, engine, trained, values)
    return Reference(args=args, spec=spec, chunks=engine.chunks, shown=shown)


def _checkpoint(args: TrainArgs, path: Path) -> Checkpoint:
    found = checkpoint_load.find(path, recognizes_others=args.auto_detect_ckpt_format)
    if found is None:
        raise _missing("ref_adapter_load", str(path))
    return found


def _missing(name: str, path: str) -> TrainingError:
    message = f"spec.args.{name}: {path} has no complete checkpoint; name the folder above iter_NNNNNNN"
    return TrainingError(ExitCode.NO_CHECKPOINT, message)


def _renew_originals(args: TrainArgs, engine: Engine) -> None:
    """Copies the weights that train in full again where `load` replaces the base that they were copied from."""
    if not args.load or not (head.modules_to_save(args) or args.lora_bias == "all"):
        return
    found = checkpoint_load.find(Path(args.load), recognizes_others=args.auto_detect_ckpt_format)
    if found is None:
        return
    checkpoint_load.read_part(engine, found, "base")
    with torch.no_grad():
        for name, parameter in named_parameters(engine.models):
            if parameter.requires_grad and not is_adapter(name):
                original_of(parameter).copy_(parameter)


@contextmanager
def _without_adapters(engine: Engine) -> Iterator[None]:
    engine.gather_parameters()
    with adapters_disabled(list(engine.models)):
        yield


@contextmanager
def _with_values(engine: Engine, parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> Iterator[None]:
    engine.gather_parameters()
    with swapped(parameters, values):
        yield
