"""A micro-batch from items: samples laid end to end in one row (padding_free), or padded to rows of equal length.

Two samples of 3 and 2 tokens, padded to a multiple of 4 (p = padding, - = no label):
    padding_free   tokens  a0 a1 a2 b0 b1 p  p  p      cu_seqlens 0 3 5 8
                   labels  a1 a2 -  b1 -  -  -  -      position   0 1 2 0 1 0 1 2
    padded         tokens  a0 a1 a2 p  /  b0 b1 p  p   and an attention mask
The row is the same on every tensor, pipeline and context rank; context-parallel slicing happens later.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_trainer.data.mismatch import mismatched
from megatron_trainer.data.mrope import mrope_positions
from megatron_trainer.data.values import IGNORED, Item, MicroBatch, Pair, Pixels, Sample, joined_pixels
from megatron_trainer.data.vision.pixels import ImageReader
from megatron_trainjob.families.vision import Vision


@dataclass(frozen=True, kw_only=True)
class RowShape:
    """How rows are padded.

    sample_multiple: each sequence is padded to a multiple of this (2 x context_parallel_size, else 1).
    row_multiple: the whole row is padded to a multiple of this (sequence parallel, context parallel, FP8).
    row_length: the row is padded to at least this many tokens, for a fixed shape; None pads as little as possible.
    mismatched_length: micro-batches also hold their prompts with each other's answers (mismatch.py), truncated to this
    many tokens; None disables this.
    splits_groups: samples are groups, each sequence of which ends with a labeled token.
    whole_rows: without padding, samples of one length become rows of their own, which are not packed.
    vision, images: the model's vision tower and what makes pixels for it, None for text models. reads_pixels: false on
    ranks that need the positions of images only.
    """

    pad_id: int
    padding_free: bool = True
    sample_multiple: int = 1
    row_multiple: int = 1
    row_length: int | None = None
    padding_side: Literal["left", "right"] = "right"
    mismatched_length: int | None = None
    splits_groups: bool = False
    whole_rows: bool = False
    vision: Vision | None = None
    images: ImageReader | None = None
    reads_pixels: bool = True


def row_multiple(*, tensor_parallel: int, context_parallel: int, sequence_parallel: bool, fp8: bool) -> int:
    """The multiple to which rows are padded: ranks get equal slices, and FP8 kernels a multiple of 16."""
    multiple = tensor_parallel if sequence_parallel else 1
    if context_parallel > 1:
        multiple = math.lcm(multiple * context_parallel, 2 * context_parallel)
    return max(8 * multiple, 16) if fp8 else multiple


def sample_multiple(*, context_parallel: int) -> int:
    """The multiple to which sequences are padded: context parallelism cuts each into 2 x cp chunks."""
    return 2 * context_parallel if context_parallel > 1 else 1


def collate(items: Sequence[Item], shape: RowShape) -> MicroBatch:
    """One micro-batch of the items (samples, pairs, or packed rows of them); without items, one row of padding.

    Pairs are laid out as all chosen sequences followed by all rejected ones, in the same order.
    """
    samples = _sequences(items)
    groups: tuple[int, ...] = ()
    if shape.splits_groups:
        members = [split(sample) for sample in samples]
        samples, groups = [member for group in members for member in group], tuple(map(len, members))
    batch = replace(_rows(samples, shape), reference_S=_reference(items), target_SN=_targets(items), groups=groups)
    if shape.mismatched_length is None:
        return batch
    settled = [sample.mismatched for sample in samples if sample.mismatched is not None]
    others = settled or mismatched(samples, max_length=shape.mismatched_length)
    return replace(batch, mismatched=replace(_rows(others, shape), reference_S=_reference(others)))


def split(group: Sample) -> list[Sample]:
    """The sequences of a group."""
    ends = np.flatnonzero(group.labels != IGNORED) + 1
    parts = zip(np.split(group.input_ids, ends[:-1]), np.split(group.labels, ends[:-1]), strict=True)
    return [Sample(input_ids=ids, labels=labels, channel=group.channel) for ids, labels in parts]


def _rows(samples: list[Sample], shape: RowShape) -> MicroBatch:
    if not samples:
        return _padding_alone(shape)
    samples = [_seen(sample, shape) if sample.media else sample for sample in samples]
    if not shape.padding_free:
        return _padded(samples, shape)
    return _whole_rows(samples, shape) if _are_whole_rows(samples, shape) else _padding_free(samples, shape)


def _seen(sample: Sample, shape: RowShape) -> Sample:
    """The sample with the pixels and the positions of its images; where positions count tokens, frames are images.

    Raises TrainingError if an image is gone or has changed.
    """
    if shape.vision is None or shape.images is None:
        raise ValueError("a sample has images, and the model has no vision tower")
    read = shape.images.pixels
    if not shape.vision.sections:
        return replace(sample, images=read(sample.media)) if shape.reads_pixels else sample
    images = [medium for medium in sample.media if not medium.is_video]
    videos = [medium for medium in sample.media if medium.is_video]
    places = mrope_positions(
        sample.input_ids,
        [medium.grid for medium in images],
        shape.vision,
        video_grids=[medium.grid for medium in videos],
        seconds_per_grid=[medium.seconds_per_step for medium in videos],
    )
    if not shape.reads_pixels:
        return replace(sample, position_ids_3T=places)
    return replace(sample, images=read(images), videos=read(videos), position_ids_3T=places)


def round_up(length: int, multiple: int) -> int:
    """The smallest multiple that is not below `length`."""
    return -(-length // multiple) * multiple


def _flat(items: Sequence[Item]) -> list[Sample | Pair]:
    return [part for item in items for part in (item if isinstance(item, list) else [item])]


def _reference(items: Sequence[Item]) -> torch.Tensor | None:
    """Known reference log-probabilities, in the order of the sequences; None unless all are known."""
    known = [part.reference for part in _flat(items) if part.reference is not None]
    is_complete = 0 < len(known) == len(_flat(items))
    return torch.tensor(known, dtype=torch.float32).t().flatten() if is_complete else None


def _targets(items: Sequence[Item]) -> torch.Tensor | None:
    """One row for each sample or pair; None unless all have a target."""
    known = [part.target for part in _flat(items) if part.target]
    return torch.tensor(known, dtype=torch.float32) if 0 < len(known) == len(_flat(items)) else None


def _sequences(items: Sequence[Item]) -> list[Sample]:
    flat = _flat(items)
    pairs = [part for part in flat if isinstance(part, Pair)]
    samples = [part for part in flat if isinstance(part, Sample)]
    return [*samples, *(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)]


def _padding_free(samples: list[Sample], shape: RowShape) -> MicroBatch:
    padded = [round_up(sample.length, shape.sample_multiple) for sample in samples]
    starts = [0, *np.cumsum(padded).tolist()]
    total = max(round_up(starts[-1], shape.row_multiple), shape.row_length or 0)
    row = _Row(total, shape.pad_id)
    for number, (start, sample, length) in enumerate(zip(starts, samples, padded, strict=False)):
        row.put(start, sample, length, number)
    if total > starts[-1]:
        row.pad(starts[-1])
        starts.append(total)
    cu_seqlens = torch.tensor(starts, dtype=torch.int32)
    return _micro_batch([row], samples, cu_seqlens, int(cu_seqlens.diff().max()), None)


def _are_whole_rows(samples: list[Sample], shape: RowShape) -> bool:
    """Whether the samples, all of one length, are rows by themselves: without padding, in which nothing is packed."""
    length = samples[0].length
    is_wanted = shape.whole_rows and shape.row_length is None and length % shape.row_multiple == 0
    return is_wanted and all(sample.length == length and not sample.media for sample in samples)


def _whole_rows(samples: list[Sample], shape: RowShape) -> MicroBatch:
    rows = []
    for number, sample in enumerate(samples):
        rows.append(_Row(sample.length, shape.pad_id))
        rows[-1].put(0, sample, sample.length, number)
    return _micro_batch(rows, samples, None, samples[0].length, None)


def _padded(samples: list[Sample], shape: RowShape) -> MicroBatch:
    longest = max(round_up(sample.length, shape.sample_multiple) for sample in samples)
    total = max(round_up(longest, shape.row_multiple), shape.row_length or 0)
    rows = []
    for number, sample in enumerate(samples):
        row = _Row(total, shape.pad_id)
        row.put(total - sample.length if shape.padding_side == "left" else 0, sample, sample.length, number)
        rows.append(row)
    padding_BT = torch.from_numpy(np.stack([row.sequences for row in rows]) < 0)
    return _micro_batch(rows, samples, None, total, _attention_mask(padding_BT))


def _padding_alone(shape: RowShape) -> MicroBatch:
    """The micro-batch of a rank that has no samples left in the last step of an evaluation: padding only."""
    total = max(shape.row_multiple, shape.row_length or 0)
    row = _Row(total, shape.pad_id)
    row.pad(0)
    if shape.padding_free:
        return _micro_batch([row], [], torch.tensor([0, total], dtype=torch.int32), total, None)
    return _micro_batch([row], [], None, total, _attention_mask(torch.ones(1, total, dtype=torch.bool)))


def _attention_mask(padding_BT: torch.Tensor) -> torch.Tensor:
    """Causal, with padding masked; every token attends to itself, so that no softmax is empty."""
    length = padding_BT.shape[1]
    future_TT = torch.ones(length, length, dtype=torch.bool).triu(1)
    forbidden_BTT = future_TT | padding_BT[:, None, :]
    return (forbidden_BTT & ~torch.eye(length, dtype=torch.bool))[:, None]


class _Row:
    """The arrays of one row while samples are added to it."""

    def __init__(self, length: int, pad_id: int) -> None:
        self.tokens = np.full(length, pad_id, dtype=np.int64)
        self.labels = np.full(length, IGNORED, dtype=np.int64)
        self.weights = np.zeros(length, dtype=np.float32)
        self.positions = np.zeros(length, dtype=np.int64)
        self.sequences = np.full(length, -1, dtype=np.int64)
        self.places = np.zeros((3, length), dtype=np.int64)

    def pad(self, start: int) -> None:
        """Everything from here on is padding."""
        self.positions[start:] = np.arange(len(self.tokens) - start)
        self.places[:, start:] = self.positions[start:]

    def put(self, start: int, sample: Sample, padded_length: int, number: int) -> None:
        end = start + sample.length
        self.tokens[start:end] = sample.input_ids
        self.positions[start : start + padded_length] = np.arange(padded_length)
        self.places[:, start : start + padded_length] = _places(sample, padded_length)
        self.sequences[start:end] = number
        labels = sample.labels[1:]
        self.labels[start : end - 1] = labels
        self.weights[start : end - 1] = _weights(sample, labels)


def _places(sample: Sample, length: int) -> NDArray[np.int64]:
    """Positions by time, height and width, [3, length]; padding continues after the sample's last one."""
    places = np.tile(np.arange(length), (3, 1))
    if sample.position_ids_3T is not None:
        places += int(sample.position_ids_3T.max(initial=-1)) + 1 - sample.length
        places[:, : sample.length] = sample.position_ids_3T
    return places


def _weights(sample: Sample, labels: NDArray[np.int32]) -> NDArray[np.float32]:
    weights: NDArray[np.float32] = (labels != IGNORED).astype(np.float32)
    if sample.loss_scale is not None:
        weights *= sample.loss_scale[1:]
    return weights


def _micro_batch(
    rows: list[_Row],
    samples: list[Sample],
    cu_seqlens: torch.Tensor | None,
    max_seqlen: int,
    attention_mask: torch.Tensor | None,
) -> MicroBatch:
    weights_BT = np.stack([row.weights for row in rows])
    return MicroBatch(
        tokens_BT=torch.from_numpy(np.stack([row.tokens for row in rows])),
        labels_BT=torch.from_numpy(np.stack([row.labels for row in rows])),
        loss_weight_BT=torch.from_numpy(weights_BT),
        position_ids_BT=torch.from_numpy(np.stack([row.positions for row in rows])),
        sequence_BT=torch.from_numpy(np.stack([row.sequences for row in rows])),
        cu_seqlens=cu_seqlens,
        max_seqlen=max_seqlen,
        attention_mask=attention_mask,
        num_samples=len(samples),
        num_tokens=sum(sample.length for sample in samples),
        channels=tuple(sample.channel for sample in samples),
        num_patches=sum(math.prod(medium.grid) for sample in samples for medium in sample.media),
        num_pairs=sum(int((row.positions + 1)[row.sequences >= 0].sum()) for row in rows),
        has_loss_BT=weights_BT != 0,
        **_vision(rows, samples),
    )


def _vision(rows: list[_Row], samples: list[Sample]) -> dict[str, Any]:
    """The fields of a micro-batch with the images of its samples and their positions; none for text alone."""
    images = joined_pixels([sample.images for sample in samples if sample.images is not None])
    videos = joined_pixels([sample.videos for sample in samples if sample.videos is not None])
    found = _tensors(images, "pixel_values", "grid_thw") | _tensors(videos, "pixel_values_videos", "video_grid_thw")
    if any(sample.position_ids_3T is not None for sample in samples):
        found["mrope_position_ids_3BT"] = torch.from_numpy(np.stack([row.places for row in rows], axis=1))
    return found


def _tensors(pixels: Pixels | None, values: str, grid: str) -> dict[str, Any]:
    if pixels is None:
        return {}
    return {values: torch.from_numpy(pixels.values_PD), grid: torch.from_numpy(pixels.grid_N3)}
