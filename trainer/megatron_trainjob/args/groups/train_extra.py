"""Packing, streaming, epochs and further losses."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_trainjob.args.field import EVERY_TASK, arg


@dataclass(frozen=True, kw_only=True)
class TrainExtra:
    """Packing, streaming, epochs and further losses."""

    add_version: bool = arg(
        True,
        (
            "Append a sub-folder v{N}-{time} to save, so that runs never overwrite each other; the "
            "operator sets false so that a restart finds its checkpoint."
        ),
        status="works",
    )
    padding_free: bool = arg(
        True,
        "Concatenate the samples of a micro-batch into one row instead of padding them.",
        status="works",
    )
    mlp_padding_free: bool = arg(
        False,
        "With padding, still skip pad tokens in the feed-forward block.",
        status="works",
    )
    vit_gradient_checkpointing: bool = arg(
        True,
        "Recomputation in the vision tower of a model with images.",
        status="works",
    )
    gradient_checkpointing_kwargs: Mapping[str, Any] | None = arg(
        None,
        "Keywords for torch.utils.checkpoint in the vision tower; unset: use_reentrant false.",
        aliases=("vit_gradient_checkpointing_kwargs",),
        status="works",
    )
    packing: bool = arg(
        False,
        "Pack whole samples into rows of packing_length tokens.",
        featured=True,
        applies_to=EVERY_TASK,
        status="works",
    )
    packing_length: int | None = arg(
        None,
        "Length of a packed row; unset: max_length.",
        unit="tokens",
        ge=1,
        status="works",
    )
    streaming: bool = arg(
        False,
        "Read and tokenize the data while training; the length of the run must be given.",
        applies_to=EVERY_TASK,
        status="works",
    )
    lazy_tokenize: bool = arg(
        False,
        "Tokenize on the fly.",
        applies_to=EVERY_TASK,
        status="works",
    )
    cached_dataset: tuple[str, ...] = arg(
        (),
        (
            "Folders of data tokenized beforehand by an export with to_cached_dataset: with train and, where there is "
            "one, val in them, or a train folder itself."
        ),
        applies_to=EVERY_TASK,
        status="works",
    )
    cached_val_dataset: tuple[str, ...] = arg(
        (),
        "Folders of validation data tokenized beforehand.",
        status="works",
    )
    group_by_length: bool = arg(
        False,
        (
            "Read samples of similar length together on all ranks: less padding, no waiting; globally random, "
            "and reproducible."
        ),
        status="works",
    )
    max_epochs: int | None = arg(
        None,
        "Passes over the data, after which the run evaluates, saves and ends; or train_iters, if fewer.",
        unit="epochs",
        ge=1,
        aliases=("num_train_epochs",),
        status="works",
    )
    enable_dft_loss: bool = arg(
        False,
        "Dynamic fine-tuning: weight each token by its own probability (arXiv 2508.05629).",
        status="works",
    )
    enable_channel_loss: bool = arg(
        False,
        'Report the loss separately for each value of the data field "channel".',
        status="works",
    )
