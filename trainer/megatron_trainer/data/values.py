"""The values of the data pipeline, from a row of a file to a micro-batch. No I/O, and no torch at run time.

Shape suffixes: B rows of a micro-batch, T tokens of a row; P patches of all images, D numbers of a patch (channels x
temporal x patch x patch), N images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
"""Label of a token without loss."""


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where a row came from: the file (or dataset) and its line or row number, counted from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """Why a row is not trained on: a reason that is the same for all rows of a kind, and the detail of this row."""

    location: Location
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.location}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


class RowError(Exception):
    """A row cannot be used. Carries the reason (a fixed text, for counting) and the detail (of this row)."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason
        self.detail = detail


class Arguments(dict[str, object]):
    """The arguments of a tool call; `text` is their form in the row, for templates that print text."""

    def __init__(self, fields: Mapping[str, object], text: str | None = None) -> None:
        super().__init__(fields)
        self.text = json.dumps(fields, ensure_ascii=False) if text is None else text


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn.

    loss: of an assistant turn, overrides the loss_scale strategy: false excludes it, true trains it, a number is the
    weight of its loss. thought: the assistant's thought, if the row has it in a separate field.
    alias: the role's name in the row, for templates that support it (developer, observation).
    extra: fields that templates read, such as tool_calls.
    given: [start, end) of the parts of an assistant's content that it did not write, such as results of tools.
    """

    role: str
    content: str
    loss: bool | float | None = None
    thought: str = ""
    alias: str = ""
    extra: Mapping[str, object] = field(default_factory=dict)
    given: tuple[tuple[int, int], ...] = ()

    @property
    def calls(self) -> Sequence[Mapping[str, Any]]:
        """The tool calls, each {type, function: {name, arguments}}."""
        if not self.extra:
            return ()
        calls = self.extra.get("tool_calls", ())
        return calls if isinstance(calls, list | tuple) else ()


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Images (or videos) in the order in which the token ids name them, exactly as transformers' processor makes them.

    values_PD: float32, the patches of all images, one image after the other. grid_N3: int64, patches of each image
    along (time, height, width); their product is its number of patches.
    """

    values_PD: NDArray[np.float32]
    grid_N3: NDArray[np.int64]


def joined_pixels(parts: Sequence[Pixels]) -> Pixels | None:
    """The images of all parts in order, None if there are none."""
    if not parts:
        return None
    return Pixels(
        values_PD=np.concatenate([part.values_PD for part in parts]),
        grid_N3=np.concatenate([part.grid_N3 for part in parts]),
    )


MediumFile = str | bytes
"""The file of an image: its absolute path, or its bytes as they were in the row or behind a URL."""


@dataclass(frozen=True, kw_only=True)
class Medium:
    """An image or a video of a sequence, in the order of their tokens.

    sources: the file of the image, or those of a video's frames. size: (height, width) in pixels, as stored. grid:
    patches along (time, height, width) once it is resized for the model. seconds_per_step: between two steps of a
    video's grid in time. times: of these steps, in seconds, while its row becomes tokens; they are not stored.
    """

    sources: tuple[MediumFile, ...]
    size: tuple[int, int]
    grid: tuple[int, int, int]
    is_video: bool = False
    seconds_per_step: float = 1.0
    times: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """One recognized row. Text for pre-training is a conversation of a single assistant turn.

    others: the sequences after the first of a row that is a group (group.py).
    target: the training target besides the tokens: (1.0,) for a desirable answer, (0.0,) for an undesirable one; the
    numbers of a classifier's label; for a group the similarity of its texts, or the number of relevant documents.
    notes: remarks about a usable row for the user, worded the same for all rows of a kind.
    media: the images and videos of the row, which marks in the texts name by number (vision/rows.py).
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, object], ...] | None = None
    channel: str | None = None
    rejected: tuple[Message, ...] | None = None
    others: tuple[tuple[Message, ...], ...] = ()
    target: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    media: tuple[Medium, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One tokenized sequence of T tokens; labels are NOT shifted, a token without loss has label -100.

    A group of sequences is a sample, too: they are concatenated, and the last token of each has a label.

    loss_scale: weight of each token's loss, float32[T]; None means 1 for every token with a label.
    target: as in Conversation. reference: log-probability under the reference model, if precomputed. mismatched: its
    prompt with the answer of another sample, if chosen in advance (mismatch.py).
    media: its images and videos in the order of their tokens: the ids hold the image token grid.prod() / merge**2 times
    for each. images, videos: their pixels, once they are read. position_ids_3T: int64, multimodal rotary positions
    (time, height, width), None where all three count the tokens.
    """

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    loss_scale: NDArray[np.float32] | None = None
    channel: str | None = None
    target: tuple[float, ...] = ()
    reference: tuple[float, ...] | None = None
    mismatched: Sample | None = None
    media: tuple[Medium, ...] = ()
    images: Pixels | None = None
    videos: Pixels | None = None
    position_ids_3T: NDArray[np.int64] | None = None

    @property
    def length(self) -> int:
        """Tokens of the sequence."""
        return len(self.input_ids)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A preference: the same prompt with the better and the worse answer.

    target: as in Conversation. reference: log-probabilities of both under the reference model, if precomputed.
    """

    chosen: Sample
    rejected: Sample
    target: tuple[float, ...] = ()
    reference: tuple[float, ...] | None = None

    @property
    def length(self) -> int:
        """Tokens of both sequences together."""
        return self.chosen.length + self.rejected.length


Item = Sample | Pair | list[Sample | Pair]
"""The item of a dataset at one index: a sample, a pair, or a packed row of either."""


class Indexed(Protocol):
    """Items by index, wherever they are stored."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Item: ...


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """The input of one forward pass of a data-parallel rank; the same on all its tensor/pipeline/context ranks.

    tokens_BT, position_ids_BT: int64. labels_BT: int64, already shifted by one inside each sample, -100 without
    loss. loss_weight_BT: float32, shifted likewise, 0 where the label is -100.
    cu_seqlens: int32[S+1], starts of the S sequences of the row and its end, padding included (None: padded mode).
    max_seqlen: longest sequence of the row. attention_mask: bool [B, 1, T, T], True where attention is FORBIDDEN
    (Megatron's sense), padded mode only.
    sequence_BT: int64, index of the real sequence that a token belongs to, in row order; -1 at padding.
    num_samples: real sequences (a pair counts two). num_tokens: real tokens.
    channels: channel of each real sequence, in the order of the row.
    reference_S: log-probability of each real sequence's trained tokens under the reference model, float32.
    loss_share: factor on the micro-batch's mean loss, if micro-batches must not have equal weight.
    target_SN: targets of the samples (or pairs, or groups), float32, None if they have none. groups: number of
    sequences of each group, in row order; empty if rows are not groups.
    everyones_groups: the same for the corresponding micro-batches of all data-parallel ranks, if their texts are
    compared.
    mismatched: the prompts of the samples with the answers of other samples, see mismatch.py.
    divergence: estimate of KL(policy, reference) for this micro-batch, nats, a scalar.
    pixel_values, grid_thw: float32 [patches, numbers of a patch] and int64 [images, 3], the images of all samples in
    the order of the row (Pixels); pixel_values_videos, video_grid_thw: its videos. None without any.
    mrope_position_ids_3BT: int64, positions by time, height and width; None where all three are position_ids_BT.
    num_patches: of all images and videos, also where their pixels are not read. num_pairs: pairs of real tokens (query,
    key) under the causal mask, a token at position p attends to p + 1 tokens.
    has_loss_BT: where loss_weight_BT is not 0. An array, since it stays on the host, which need not ask a device how
    many logits to compute; None if not known there.
    """

    tokens_BT: Tensor
    labels_BT: Tensor
    loss_weight_BT: Tensor
    position_ids_BT: Tensor
    sequence_BT: Tensor
    cu_seqlens: Tensor | None
    max_seqlen: int
    attention_mask: Tensor | None
    num_samples: int
    num_tokens: int
    channels: tuple[str | None, ...]
    reference_S: Tensor | None = None
    loss_share: float = 1.0
    target_SN: Tensor | None = None
    mismatched: MicroBatch | None = None
    divergence: Tensor | None = None
    groups: tuple[int, ...] = ()
    everyones_groups: tuple[tuple[int, ...], ...] = ()
    pixel_values: Tensor | None = None
    grid_thw: Tensor | None = None
    pixel_values_videos: Tensor | None = None
    video_grid_thw: Tensor | None = None
    mrope_position_ids_3BT: Tensor | None = None
    num_patches: int = 0
    num_pairs: int = 0
    has_loss_BT: NDArray[np.bool_] | None = None

    @property
    def num_targets(self) -> int:
        """Tokens with a loss; where the host does not know, all real tokens."""
        return self.num_tokens if self.has_loss_BT is None else int(np.count_nonzero(self.has_loss_BT))

    def num_near_pairs(self, window: int) -> Tensor:
        """Pairs of real tokens (query, key) of which the key is one of the last `window` tokens up to the query."""
        return (self.position_ids_BT + 1).clamp(max=window)[self.sequence_BT >= 0].sum()

    def pin_memory(self) -> MicroBatch:
        """The micro-batch in memory that a GPU reads by itself. torch's loader calls this, in a thread of its own."""
        values = ((one.name, getattr(self, one.name)) for one in fields(self))
        return replace(self, **{name: value.pin_memory() for name, value in values if hasattr(value, "pin_memory")})

    @property
    def padding_BT(self) -> Tensor:
        """True at padding tokens, bool [B, T]."""
        return self.sequence_BT < 0
