"""The data of a run, read once for all ranks, and the shape of its micro-batches."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist
from megatron.core import parallel_state
from transformers import PreTrainedTokenizerBase

from megatron_trainer import environment
from megatron_trainer.data.collate import RowShape
from megatron_trainer.data.prepare import Prepared, prepare
from megatron_trainer.data.settings import label_of, row_shape
from megatron_trainer.data.vision.model import ImageRows, image_rows_of
from megatron_trainer.models.spec import ModelSpec
from megatron_trainjob.args import derive
from megatron_trainjob.args.field import TrainingTask
from megatron_trainjob.args.tree import TrainArgs

logger = logging.getLogger(__name__)


def read_data(
    args: TrainArgs, tokenizer: PreTrainedTokenizerBase, task: TrainingTask, spec: ModelSpec, save: Path
) -> tuple[Prepared, RowShape]:
    """The data of the run, and how its micro-batches are made. Collective.

    The first rank reads and caches; the other ranks, and later versions of the run, read the cache.
    """
    images = image_rows_of(args, spec.directory, spec.config, tokenizer, data_cache(args))
    is_first = dist.get_rank() == 0
    for message in environment.ignored_of_images() if is_first and images is not None else ():
        logger.warning("%s", message)
    if not is_first:
        dist.barrier()
    prepared = prepare(
        args,
        tokenizer,
        task=task,
        max_length=max_length(args, spec),
        save=save,
        cache_directory=data_cache(args),
        is_first_rank=is_first,
        label=label_of(args, spec.config),
        images=images,
    )
    if is_first:
        dist.barrier()
    return prepared, _shape(args, task, spec, tokenizer, images)


def data_cache(args: TrainArgs) -> Path:
    """Folder of the tokenized data, which all runs of a job share."""
    return Path(derive.save_directory(args)) / "data_cache"


def max_length(args: TrainArgs, spec: ModelSpec) -> int:
    """Tokens that a sample may have."""
    return derive.max_length(args, spec.config) or spec.model.max_position_embeddings


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What rows are filled up with: nothing attends to it and no loss counts it, so any token will do."""
    number = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return 0 if number is None else number


def _shape(
    args: TrainArgs,
    task: TrainingTask,
    spec: ModelSpec,
    tokenizer: PreTrainedTokenizerBase,
    images: ImageRows | None,
) -> RowShape:
    shape = row_shape(args, pad_id=_pad_id(tokenizer))
    if images is not None:
        reads = bool(parallel_state.is_pipeline_first_stage(ignore_virtual=True))
        shape = replace(shape, vision=spec.model.vision, images=images.reader, reads_pixels=reads)
    if derive.estimates_divergence(args, task):
        shape = replace(shape, mismatched_length=max_length(args, spec))
    return shape
