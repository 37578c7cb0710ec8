"""The learning rate and its schedule."""

from dataclasses import dataclass
from typing import Literal

from megatron_trainjob.args.field import arg


@dataclass(frozen=True, kw_only=True)
class LearningRate:
    """The learning rate and its schedule."""

    lr: float | None = arg(
        None,
        "Peak learning rate; unset: 1e-5 for full training, 1e-4 for LoRA.",
        gt=0,
        featured=True,
        status="works",
    )
    decoupled_lr: float | None = arg(
        None,
        "Peak learning rate of embedding and output layer, where they train (LoRA: modules_to_save); else lr.",
        gt=0,
        status="works",
    )
    decoupled_min_lr: float | None = arg(
        None,
        "Their learning rate at the end of the decay; unset: min_lr.",
        ge=0,
        status="works",
    )
    vit_lr: float | None = arg(
        None,
        "Peak learning rate of the vision tower; unset: lr.",
        gt=0,
        status="works",
    )
    aligner_lr: float | None = arg(
        None,
        "Peak learning rate of the aligner of images; unset: lr.",
        gt=0,
        status="works",
    )
    lr_decay_style: Literal["cosine", "linear", "constant", "WSD"] = arg(
        "cosine",
        'Shape after warmup; "WSD" stays at the peak and decays in the last lr_wsd_decay_iters.',
        status="works",
    )
    lr_wsd_decay_style: Literal["exponential", "linear", "cosine", "minus_sqrt"] = arg(
        "exponential",
        "Shape of the decay that ends WSD.",
        status="works",
    )
    lr_wsd_decay_iters: int | None = arg(
        None,
        "Steps of the decay that ends WSD.",
        unit="iterations",
        ge=1,
        status="works",
    )
    lr_decay_iters: int | None = arg(
        None,
        "Steps over which the rate decays to min_lr; unset: train_iters.",
        unit="iterations",
        ge=1,
        featured=True,
        status="works",
    )
    lr_warmup_iters: int = arg(
        0,
        "Steps of linear warmup.",
        unit="iterations",
        ge=0,
        status="works",
    )
    lr_warmup_fraction: float | None = arg(
        None,
        "Warmup as a fraction of the decay steps.",
        unit="fraction",
        ge=0,
        le=1,
        featured=True,
        status="works",
    )
    lr_warmup_init: float = arg(
        0.0,
        "Learning rate at the start of warmup.",
        ge=0,
        status="works",
    )
    min_lr: float = arg(
        0.0,
        "Learning rate at the end of the decay.",
        ge=0,
        featured=True,
        status="works",
    )
