"""How the tensors of a Hugging Face checkpoint become one rank's shard of a parameter, and back. Pure tensor math.

A rule works on anything with a shape that can be sliced, so that loading reads only the rows it needs.
Shapes: a weight is [rows, columns], a bias [rows]; r is the rank among n ranks that share the parameter.

    rule         sources        whole parameter, rows                          shard of rank r
    plain        w              as it is                                       r-th of n along the split dimension
    qkv          q, k, v        by key-value head: [q.. k v | q.. k v | ..]    r-th of n
    gated_qkv    q with a gate by head, k, v
                                by key-value head: [q.. gates.. k v | ..]      r-th of n
    channels     q over k over v  by key head of linear attention: [q k v.. | ..]  r-th of n
    fused_qkv    q over k over v  the same                                     r-th of n
    qk           q, k           by key-value head of layers without values: [q.. k | ..]  r-th of n
    gated        gate, up       [gate; up]                                     [r-th of gate; r-th of up]
    fused_gated  gate over up   the same                                       [r-th of gate; r-th of up]
    vocabulary   w              w, zero rows up to the padded size             r-th of n
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Source(Protocol):
    """A tensor of a checkpoint, read when it is sliced. A torch tensor is one."""

    @property
    def shape(self) -> Sequence[int]:
        """Size of each dimension."""

    def __getitem__(self, index: Any) -> Tensor:  # noqa: ANN401
        """The rows, or with a tuple the rows and columns, of a slice."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the model that rules need. queries_per_group: query heads that share one key-value head. channels: rows
    of queries, keys and values of linear attention, which are ordered by its key heads. wide_groups, wide_queries: the
    same as groups and queries_per_group in layers whose keys are their values.
    """

    groups: int
    queries_per_group: int
    vocab_size: int
    padded_vocab_size: int
    channels: tuple[int, ...] = ()
    key_heads: int = 1
    wide_groups: int = 1
    wide_queries: int = 1


@dataclass(frozen=True, kw_only=True)
class Share:
    """A part of a parameter: the `rank`-th of `size` along `dim`, or all of it when dim is None."""

    rank: int = 0
    size: int = 1
    dim: int | None = None


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """A shard that is not concatenated yet: each of `groups` runs of rows takes the next piece of every part.

    Parts are slices of the checkpoint's mapped file. Concatenating them in new memory costs more than reading them,
    because every page is a page fault; copy_to copies each part to its destination.
    """

    parts: Sequence[Tensor]
    groups: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the shard. Raises ValueError for parts that differ in more than their rows."""
        if len({part.shape[1:] for part in self.parts}) > 1:
            raise ValueError(f"rows of different shapes: {[list(part.shape) for part in self.parts]}")
        if self.parts[0].ndim == 0:
            return ()
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    def whole(self) -> Tensor:
        """The shard as one tensor."""
        if len(self.parts) == 1:
            return self.parts[0]
        return torch.cat(self._by_group(), dim=1).flatten(0, 1)

    def copy_to(self, target: Tensor) -> None:
        """Fills `target`, contiguous and of the same shape, converting to its type."""
        parts = self._by_group()
        grouped = target.view(self.groups, -1, *target.shape[1:])
        places = torch.split(grouped, [part.shape[1] for part in parts], dim=1)
        for place, part in zip(places, parts, strict=True):
            place.copy_(part)

    def _by_group(self) -> list[Tensor]:
        return [part.reshape(self.groups, -1, *part.shape[1:]) for part in self.parts]


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """One rule. blocks: sources -> this rank's shard. unshard: all shards, in rank order, and dim -> the sources."""

    blocks: Callable[[Sequence[Source], Share, Sizes], Blocks]
    unshard: Callable[[Sequence[Tensor], int | None, Sizes], tuple[Tensor, ...]]

    def shard(self, sources: Sequence[Source], share: Share, sizes: Sizes) -> Tensor:
        """This rank's shard as one tensor."""
        return self.blocks(sources, share, sizes).whole()


def _bounds(length: int, share: Share) -> tuple[int, int]:
    """First and last + 1 of this share of `length` rows or columns."""
    if share.dim is None:
        return 0, length
    each, rest = divmod(length, share.size)
    if rest:
        raise ValueError(f"{length} rows or columns are not divisible by {share.size} ranks")
    return share.rank * each, (share.rank + 1) * each


def _blocks_plain(sources: Sequence[Source], share: Share, sizes: Sizes) -> Blocks:
    (source,) = sources
    if share.dim is None:
        return Blocks(parts=[source[:] if source.shape else source[()]])
    first, last = _bounds(source.shape[share.dim], share)
    return Blocks(parts=[source[first:last] if share.dim == 0 else source[:, first:last]])


def _unshard_plain(shards: Sequence[Tensor], dim: int | None, sizes: Sizes) -> tuple[Tensor, ...]:
    return (_whole(shards, dim),)


def _whole(shards: Sequence[Tensor], dim: int | None) -> Tensor:
    return shards[0] if dim is None or len(shards) == 1 else torch.cat(list(shards), dim)


def _blocks_qkv(sources: Sequence[Source], share: Share, sizes: Sizes) -> Blocks:
    return _by_group(sources, share, sizes.groups)


def _by_group(sources: Sequence[Source], share: Share, groups: int) -> Blocks:
    """Reads whole groups; where ranks share a group (more ranks than groups), it is read whole and cut."""
    size = share.size if share.dim is not None else 1
    if groups % size:
        whole = Blocks(parts=[source[:] for source in sources], groups=groups).whole()
        return Blocks(parts=[whole.chunk(size)[share.rank]])
    return Blocks(parts=_rows(sources, share), groups=groups // size)


def _rows(sources: Sequence[Source], share: Share) -> list[Tensor]:
    """This share of each source's rows."""
    bounds = [_bounds(source.shape[0], share) for source in sources]
    return [source[first:last] for source, (first, last) in zip(sources, bounds, strict=True)]


def _unshard_qkv(shards: Sequence[Tensor], dim: int | None, sizes: Sizes) -> tuple[Tensor, ...]:
    whole = _whole(shards, dim)
    by_group = whole.reshape(sizes.groups, -1, *whole.shape[1:])
    head = by_group.shape[1] // (sizes.queries_per_group + 2)
    split = torch.split(by_group, [sizes.queries_per_group * head, head, head], dim=1)
    return tuple(part.flatten(0, 1) for part in split)


def _blocks_qk(sources: Sequence[Source], share: Share, sizes: Sizes) -> Blocks:
    return _by_group(sources, share, sizes.wide_groups)


def _unshard_qk(shards: Sequence[Tensor], dim: int | None, sizes: Sizes) -> tuple[Tensor, ...]:
    whole = _whole(shards, dim)
    by_group = whole.reshape(sizes.wide_groups, -1, *whole.shape[1:])
    head = by_group.shape[1] // (sizes.wide_queries + 1)
    query, key = torch.split(by_group, [sizes.wide_queries * head, head], dim=1)
    return query.flatten(0, 1), key.flatten(0, 1)


def _blocks_gated_qkv(sources: Sequence[Source], share: Share, sizes: Sizes) -> Blocks:
    query, key, value = sources
    gates_last = _GatesLast(source=query, groups=sizes.groups, queries_per_group=sizes.queries_per_group)
    return _blocks_qkv([gates_last, key, value], share, sizes)


def _unshard_gated_qkv(shards: Sequence[Tensor], dim: int | None, sizes: Sizes) -> tuple[Tensor, ...]:
    whole, number = _whole(shards, dim), sizes.queries_per_group
    by_group = whole.reshape(sizes.groups, -1, *whole.shape[1:])
    head = by_group.shape[1] // (2 * number + 2)
    query, key, value = torch.split(by_group, [2 * number * head, head, head], dim=1)
    by_head = torch.unflatten(query, 1, (2, number, head)).transpose(1, 2)
    return by_head.flatten(0, 3), key.flatten(0, 1), value.flatten(0, 1)


@dataclass(frozen=True, kw_only=True)
class _GatesLast:
    """Rows of queries, each head followed by its gate, with the gates of a group behind its queries."""

    source: Source
    groups: int
    queries_per_group: int

    @property
    def shape(self) -> Sequence[int]:
        return self.source.shape

    def __getitem__(self, index: slice) -> Tensor:
        rows = self.source[index]
        groups = self.groups * rows.shape[0] // self.source.shape[0]
        heads = rows.reshape(groups, self.queries_per_group, 2, -1, *rows.shape[1:])
        return heads.transpose(1, 2).flatten(0, 3)


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """The rows `first` to `first + length` of a source, as a separate source."""

    source: Source
    first: int
    length: int

    @property
    def shape(self) -> Sequence[int]:
        return (self.length, *self.source.shape[1:])

    def __getitem__(self, index: slice) -> Tensor:
        start, stop, _ = index.indices(self.length)
        return self.source[self.first + start : self.first + stop]


def _blocks_fused_qkv(sources: Sequence[Source], share: Share, sizes: Sizes) -> Blocks:
    (source,) = sources
    head = source.shape[0] // (sizes.groups * (sizes.queries_per_group + 2))
    keys = sizes.groups * head
    queries = keys * sizes.queries_per_group
    bounds = ((0, queries), (queries, keys), (queries + keys, keys))
    return _blocks_qkv([_Rows(source=source, first=first, length=n) for first, n in bounds], share, sizes)


def _unshard_fused_qkv(shards: Sequence[Tensor], dim: int | None, sizes: Sizes) -> tuple[Tensor, ...]:
    return (torch.cat(_unshard_qkv(shards, dim, sizes)),)


def _blocks_channels(sources: Sequence[Source], share: Share, sizes: Sizes) -> Blocks:
    (source,) = sources
    firsts = (sum(sizes.channels[:number]) for number in range(len(sizes.channels)))
    parts = [_Rows(source=source, first=first, length=n) for first, n in zip(firsts, sizes.channels, strict=True)]
    return Blocks(parts=_rows(parts, share), groups=sizes.key_heads // (share.size if share.dim is not None else 1))


def _unshard_channels(shards: Sequence[Tensor], dim: int | None, sizes: Sizes) -> tuple[Tensor, ...]:
    whole = _whole(shards, dim)
    by_head = whole.reshape(sizes.key_heads, -1, *whole.shape[1:])
    parts = torch.split(by_head, [rows // sizes.key_heads for rows in sizes.channels], dim=1)
    return (torch.cat([part.flatten(0, 1) for part in parts]),)


def _blocks_gated(sources: Sequence[Source], share: Share, sizes: Sizes) -> Blocks:
    return Blocks(parts=_rows(sources, share))


def _unshard_gated(shards: Sequence[Tensor], dim: int | None, sizes: Sizes) -> tuple[Tensor, ...]:
    halves = [shard.chunk(2) for shard in shards]
    return torch.cat([gate for gate, _ in halves]), torch.cat([up for _, up in halves])


def _blocks_fused_gated(sources: Sequence[Source], share: Share, sizes: Sizes) -> Blocks:
    (source,) = sources
    width = source.shape[0] // 2
    first, last = _bounds(width, share)
    return Blocks(parts=[source[first:last], source[width + first : width + last]])


def _unshard_fused_gated(shards: Sequence[Tensor], dim: int | None, sizes: Sizes) -> tuple[Tensor, ...]:
    return (torch.cat(_unshard_gated(shards, dim, sizes)),)


def _blocks_vocabulary(sources: Sequence[Source], share: Share, sizes: Sizes) -> Blocks:
    """Tokens that are not in the checkpoint are initialized with the mean of those that are; padding is zero."""
    (source,) = sources
    first, last = _bounds(sizes.padded_vocab_size, share)
    stored = source.shape[0]
    parts = [source[min(first, stored) : min(last, stored)]]
    num_new = min(last, sizes.vocab_size) - max(first, stored)
    if num_new > 0:
        parts.append(source[:].float().mean(0, keepdim=True).to(parts[0].dtype).expand(num_new, -1))
    num_padded = last - max(first, sizes.vocab_size)
    if num_padded > 0:
        parts.append(parts[0].new_zeros(num_padded, *parts[0].shape[1:]))
    return Blocks(parts=parts)


def _unshard_vocabulary(shards: Sequence[Tensor], dim: int | None, sizes: Sizes) -> tuple[Tensor, ...]:
    return (_whole(shards, dim)[: sizes.vocab_size],)


RULES: dict[str, Conversion] = {
    "plain": Conversion(blocks=_blocks_plain, unshard=_unshard_plain),
    "qkv": Conversion(blocks=_blocks_qkv, unshard=_unshard_qkv),
    "qk": Conversion(blocks=_blocks_qk, unshard=_unshard_qk),
    "gated_qkv": Conversion(blocks=_blocks_gated_qkv, unshard=_unshard_gated_qkv),
    "channels": Conversion(blocks=_blocks_channels, unshard=_unshard_channels),
    "fused_qkv": Conversion(blocks=_blocks_fused_qkv, unshard=_unshard_fused_qkv),
    "gated": Conversion(blocks=_blocks_gated, unshard=_unshard_gated),
    "fused_gated": Conversion(blocks=_blocks_fused_gated, unshard=_unshard_fused_gated),
    "vocabulary": Conversion(blocks=_blocks_vocabulary, unshard=_unshard_vocabulary),
}
"""Keys are the rule names in weight tables (families/weight.py)."""
