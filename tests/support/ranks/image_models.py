"""Models with images as a rank builds them, and what their parts do beside a step of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.models.tiny_model import auto_class, transformers_config
from tests.support.ranks.image_samples import IMAGE, sample

_SETTINGS = {"recompute_granularity": "none", "calculate_per_token_loss": False, "lora_dropout": 0.0}


def write_adapter(directory: Path, settings: dict[str, Any], adapter: Path) -> frozenset[str]:
    """Writes the random adapters that `built` makes; the names of the adapted modules. Runs on every rank."""
    from megatron_trainer.convert.adapter import save_adapter
    from megatron_trainer.lora import agree
    from megatron_trainer.lora.adapter import MODULE
    from megatron_trainer.lora.names import named_modules

    models, spec, args = built(directory, {"train_type": "lora", **settings})
    save_adapter(models, spec, args, adapter)
    return agree.union(name for name, module in named_modules(models) if hasattr(module, MODULE))


def built(directory: Path, settings: dict[str, Any], virtual_stages: int | None = None) -> Any:
    """(models, spec, args) with the parts frozen that are to be, and random adapters under LoRA."""
    import torch

    from megatron_trainer import backend as backends
    from megatron_trainer import parallel
    from megatron_trainer.convert.load import load_weights
    from megatron_trainer.lora.freeze import freeze
    from megatron_trainer.lora.inject import add_adapters
    from megatron_trainer.lora.inject import settings as adapter_settings
    from megatron_trainer.lora.layer import generator_of
    from megatron_trainer.lora.names import is_adapter, named_parameters
    from megatron_trainer.models.build import build_model
    from megatron_trainer.models.spec import read_model
    from megatron_trainjob.args.tree import TrainArgs

    free = {"freeze_vit": False, "freeze_aligner": False}
    args = TrainArgs(model=str(directory), **{**_SETTINGS, **free, **settings})
    parallel.initialize(args, virtual_stages=virtual_stages)
    spec = read_model(directory, args)
    models = build_model(spec, args, backends.select())
    load_weights(models, spec)
    if args.train_type == "full":
        freeze(models, args)
        return models, spec, args
    add_adapters(models, args)
    with torch.no_grad():
        for name, parameter in named_parameters(models):
            if is_adapter(name) and name.endswith(".B") and (name.startswith("visual.") or ".experts." in name):
                drawn = torch.randn(parameter.shape, generator=generator_of(name, adapter_settings(args)))
                parameter.copy_(0.1 * drawn)
            elif parameter.requires_grad and not is_adapter(name):  # as after training
                drawn = torch.randn(parameter.shape, generator=generator_of(name, adapter_settings(args)))
                parameter.add_(0.02 * drawn)
    return models, spec, args


def runs_of_a_layer(directory: Path, settings: dict[str, Any]) -> tuple[int, bool]:
    """How often the first layer of the tower runs in one step, and whether it is recomputed as a reentrant graph."""
    import torch

    from megatron_trainer.models.tower import features, layers_and_first

    models, spec, args = built(directory, settings)
    tower, vision = models[0].visual, spec.model.vision
    layers, _ = layers_and_first(tower)
    runs = []
    layers[0].mlp.register_forward_pre_hook(lambda *_: runs.append(1))  # recomputation ends inside this part
    grid = (1, 4, 4) if vision.tile else (1, 4, 6)
    pixels = torch.randn(grid[1] * grid[2], vision.patch_values)
    tower.train()
    features(tower, vision, pixels, torch.tensor([grid]))[0].sum().backward()
    keywords = layers[0]._gradient_checkpointing_func.keywords if args.vit_gradient_checkpointing else {}
    return len(runs), bool(keywords.get("use_reentrant"))


def features_in_half(directory: Path) -> float:
    """The largest difference of the tower's features in bfloat16 from transformers', wrapped as in training."""
    import torch
    from megatron.core.transformer.module import Float16Module

    from megatron_trainer.models.tower import features

    models, spec, _ = built(directory, {"torch_dtype": "bfloat16"})
    wrapped = Float16Module(models[0].config, models[0])
    kind = transformers_config(directory).model_type
    theirs = auto_class(kind).from_pretrained(directory, dtype=torch.bfloat16, attn_implementation="sdpa")
    one = sample(2, spec.model.vision)
    pixels, grid = torch.from_numpy(one.images.values_PD), torch.from_numpy(one.images.grid_N3)
    with torch.no_grad():
        vision, whole = spec.model.vision, getattr(theirs, "model", theirs)
        own = getattr(whole, "visual", whole)
        ours, expected = (features(each.eval(), vision, pixels, grid)[0] for each in (wrapped.module.visual, own))
    return float((ours.float() - expected.float()).abs().max())


def refusal_of_lost_images(directory: Path) -> str:
    """The message about image tokens without features."""
    import torch

    models, spec, _ = built(directory, {})
    tokens = torch.tensor([[5, IMAGE, 6]])
    try:
        models[0](tokens, torch.arange(3)[None], None)
    except ValueError as error:
        return str(error)
    return ""


def warnings_of_adapters(directory: Path, settings: dict[str, Any]) -> list[str]:
    """What is warned of while adapters are added."""
    import logging

    said: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    handler = Kept(level=logging.WARNING)
    logging.getLogger("megatron_trainer").addHandler(handler)
    try:
        built(directory, settings)
    finally:
        logging.getLogger("megatron_trainer").removeHandler(handler)
    return said
