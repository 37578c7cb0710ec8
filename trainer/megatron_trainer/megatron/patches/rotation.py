"""Rotary embedding in one kernel each way: splits what linear_qkv returns and rotates queries and keys as it goes.

megatron-core starts a kernel for the queries and one for the keys, packed rows have values copied besides, and the
backward pass puts the three gradients together again. Behind norms of queries and keys, one kernel rotates both.

Shapes: S tokens, B batch, G key-value groups of this rank, Q queries per group, N = G x Q heads, D head,
P pairs of rotated channels, A angles (positions).
"""

# ruff: noqa: ANN001, ANN202 - what Triton compiles takes pointers, blocks and constants
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from megatron_trainer.triton_start import start

_BLOCK = 1024
"""Pairs of channels at a time: four warps read 16 bytes a thread of either half."""
_TYPES = (torch.bfloat16, torch.float16)
_NUM_TABLES = 2
"""Of as many micro-batches: pipeline stages alternate between one's forward pass and another's backward pass."""

_tables: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}
"""By the angles' place in memory, which nothing else can take as long as they are kept here."""


@dataclass(frozen=True, kw_only=True)
class Angles:
    """What a row's tokens rotate by. table_A2P: cosines and sines; positions: int32 [S], else those of the row."""

    table_A2P: Tensor
    is_interleaved: bool
    positions: Tensor | None


@dataclass(frozen=True, kw_only=True)
class _Given:
    """What an attention layer rotates by as soon as it has its queries, keys and values."""

    freqs: Tensor
    packed: Any


@functools.cache  # once, however often a backend is installed
def install() -> None:
    """Has self-attention rotate where it splits; without angles, the rest of its forward pass rotates nothing."""
    from megatron.core.transformer.attention import SelfAttention

    attend, split = SelfAttention.forward, SelfAttention.get_query_key_value_tensors

    def forward(self: Any, *given: Any, **settings: Any) -> Any:  # noqa: ANN401 - megatron's signature
        splits_itself = type(self).get_query_key_value_tensors is not split_and_rotated
        if splits_itself or not given or not takes(self, given[0], settings):
            return attend(self, *given, **settings)
        self.rotates_by = _Given(freqs=settings["rotary_pos_emb"], packed=settings.get("packed_seq_params"))
        try:
            return attend(self, *given, **{**settings, "rotary_pos_emb": None})
        finally:
            self.rotates_by = None

    def split_and_rotated(self: Any, *given: Any, **settings: Any) -> Any:  # noqa: ANN401 - megatron's signature
        if self.rotates_by is None:
            return split(self, *given, **settings)
        if not _splits_plainly(self):
            query, key, value = split(self, *given, **settings)
            return *rotated(query, key, _angles(self, len(query))), value
        mixed, _ = split(self, *given, **{**settings, "split_qkv": False})
        return apart(mixed, self.hidden_size_per_attention_head, _angles(self, len(mixed)))

    SelfAttention.rotates_by = None
    SelfAttention.forward, SelfAttention.get_query_key_value_tensors = forward, split_and_rotated


def takes(attention: Any, hidden_states: Tensor, settings: Mapping[str, Any]) -> bool:  # noqa: ANN401
    """Whether the kernel does what this call of attention asks for; the rest is megatron-core's."""
    freqs = settings.get("rotary_pos_emb")
    if not isinstance(freqs, Tensor) or not fits(hidden_states, freqs, attention.hidden_size_per_attention_head):
        return False
    others = ("key_value_states", "inference_context", "inference_params", "rotary_pos_cos", "rotary_pos_sin")
    if any(settings.get(name) is not None for name in others):
        return False
    return _is_plain(attention) and _is_whole(settings.get("packed_seq_params"))


def fits(hidden_states: Tensor, freqs: Tensor, head_size: int) -> bool:
    """Whether the kernel takes these: 16 bits on a GPU, and the same angles for the whole batch."""
    are_angles = freqs.dtype == torch.float32 and freqs.dim() == 4 and freqs.shape[1:3] == (1, 1)
    are_fixed = not freqs.requires_grad and not freqs.is_inference()
    has_pairs = freqs.shape[-1] % 2 == 0 and freqs.shape[-1] <= head_size
    is_half = hidden_states.is_cuda and freqs.is_cuda and hidden_states.dtype in _TYPES
    return are_angles and are_fixed and has_pairs and is_half


def _is_plain(attention: Any) -> bool:  # noqa: ANN401 - megatron-core has no types
    """Whether a layer rotates at all, by one axis and no factor, and nothing records, moves or checks its parts."""
    config = attention.config
    if not config.apply_rope_fusion or config.mrope_section is not None or attention._yarn_concentration_factor != 1.0:
        return False
    if config.no_rope_freq and config.no_rope_freq[attention.layer_number - 1]:
        return False
    unusual = (config.fused_single_qkv_rope, config.attention_output_gate, config.test_mode, config.flash_decode)
    if any(unusual) or attention.offload_qkv_linear or config.cuda_graph_impl != "none":
        return False
    return bool(attention.pg_collection.cp.size() == 1)


def _is_whole(packed: Any) -> bool:  # noqa: ANN401 - megatron-core has no types
    """Whether no ranks share a row, and queries and keys are packed alike."""
    if packed is None:
        return True
    is_alike = packed.cu_seqlens_q is packed.cu_seqlens_kv and packed.cu_seqlens_q_padded is packed.cu_seqlens_kv_padded
    return is_alike and packed.qkv_format == "thd" and packed.local_cp_size is None and packed.cp_group is None


def _splits_plainly(attention: Any) -> bool:  # noqa: ANN401 - megatron-core has no types
    """Whether nothing lies between split and rotation: no norms, and no ranks that share a group."""
    from megatron.core.transformer.identity_op import IdentityOp

    norms = (attention.q_layernorm, attention.k_layernorm)
    has_none = all(norm is None or isinstance(norm, IdentityOp) for norm in norms)
    return has_none and bool(attention.config.num_query_groups >= attention.world_size)


def _angles(attention: Any, num_tokens: int) -> Angles:  # noqa: ANN401 - megatron-core has no types
    given, is_interleaved = attention.rotates_by, bool(attention.config.rotary_interleaved)
    if given.packed is None and num_tokens > len(given.freqs):
        message = f"there are angles for {len(given.freqs)} tokens, and {num_tokens} in a row"
        raise ValueError(message)
    positions = None if given.packed is None else positions_in(given.packed, num_tokens)
    return Angles(table_A2P=_table(given.freqs, is_interleaved), is_interleaved=is_interleaved, positions=positions)


def positions_in(packed: Any, num_tokens: int) -> Tensor:  # noqa: ANN401 - megatron-core has no types
    """int32 [S]: every token's place in its sequence, made once for all layers; padding at the end is one too."""
    known: Tensor | None = getattr(packed, "token_positions", None)
    if known is None or len(known) != num_tokens:
        padded = packed.cu_seqlens_q_padded
        bounds = packed.cu_seqlens_q if padded is None else padded
        places = torch.arange(num_tokens, device=bounds.device, dtype=bounds.dtype)
        known = (places - bounds[torch.searchsorted(bounds[1:], places, right=True)]).int()
        packed.token_positions = known
    return known


def _table(freqs: Tensor, is_interleaved: bool) -> Tensor:  # noqa: FBT001 - of the key
    """The table of these angles; a recomputed layer has them as another object, at the same place in memory."""
    key = (freqs.data_ptr(), freqs.device, freqs.shape, freqs.stride(), freqs._version, is_interleaved)
    known = _tables.get(key)
    if known is None:
        while len(_tables) >= _NUM_TABLES:
            del _tables[next(iter(_tables))]
        known = _tables[key] = freqs, table(freqs, is_interleaved=is_interleaved)
    return known[1]


def table(freqs: Tensor, *, is_interleaved: bool) -> Tensor:
    """[A, 2, P]: cosines and sines of angles [A, 1, 1, 2 P], in which every pair has its own twice."""
    every = freqs[:, 0, 0]
    angles = every[:, ::2] if is_interleaved else every[:, : every.shape[-1] // 2]
    return torch.stack((angles.cos(), angles.sin()), dim=1)


def apart(mixed: Tensor, head_size: int, angles: Angles) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries [S, B, N, D] and keys [S, B, G, D], and values. mixed: [S, B, G, (Q + 2) D]."""
    parts: tuple[Tensor, Tensor, Tensor] = _Apart.apply(mixed, head_size, angles)
    return parts


def rotated(query: Tensor, key: Tensor, angles: Angles) -> tuple[Tensor, Tensor]:
    """Queries [S, B, N, D] and keys [S, B, G, D], rotated."""
    both: tuple[Tensor, Tensor] = _Rotated.apply(query, key, angles)
    return both


class _Apart(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mixed: Tensor, head_size: int, angles: Angles) -> tuple[Tensor, ...]:  # noqa: ANN401
        mixed = mixed.contiguous()
        *tokens, groups, width = mixed.shape
        ctx.angles, ctx.shape, ctx.sizes = angles, mixed.shape, [width - 2 * head_size, head_size, head_size]
        query = mixed.new_empty(*tokens, groups * (width // head_size - 2), head_size)
        key, value = (mixed.new_empty(*tokens, groups, head_size) for _ in range(2))
        results = (query, key, value)
        _start(mixed.split_with_sizes(ctx.sizes, -1), results, angles, rows=((width, width), tuple(ctx.sizes[:2])))
        return results

    @staticmethod
    def backward(ctx: Any, *of_parts: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - untyped in torch
        of_parts = tuple(part.contiguous() for part in of_parts)
        of_mixed, width = of_parts[0].new_empty(ctx.shape), ctx.shape[-1]
        rows = (tuple(ctx.sizes[:2]), (width, width))
        _start(of_parts, of_mixed.split_with_sizes(ctx.sizes, -1), ctx.angles, rows=rows, is_backward=True)
        return of_mixed, None, None


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, angles: Angles) -> tuple[Tensor, ...]:  # noqa: ANN401
        ctx.angles = angles
        return _both(query, key, angles, is_backward=False)

    @staticmethod
    def backward(ctx: Any, of_query: Tensor, of_key: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        return *_both(of_query, of_key, ctx.angles, is_backward=True), None


def _both(query: Tensor, key: Tensor, angles: Angles, *, is_backward: bool) -> tuple[Tensor, Tensor]:
    sources = (query.contiguous(), key.contiguous())
    results = (torch.empty_like(sources[0]), torch.empty_like(sources[1]))
    row = (query.shape[-2] // key.shape[-2] * query.shape[-1], query.shape[-1])
    _start(sources, results, angles, rows=(row, row), is_backward=is_backward)
    return results


def _start(
    sources: tuple[Tensor, ...],
    results: tuple[Tensor, ...],
    angles: Angles,
    *,
    rows: tuple[tuple[int, ...], tuple[int, ...]],
    is_backward: bool = False,
) -> None:
    """Queries, keys and, if any, values. rows: from one group's queries, and keys, to the next's, read and written."""
    one = results[1] if is_backward and rows[1][0] == rows[1][1] else sources[1]
    num_tokens, batch, groups, head_size = one.shape
    num_rows, pairs = num_tokens * batch * groups, angles.table_A2P.shape[-1]
    queries = min(rows[0][0], rows[1][0]) // head_size
    of_pairs = triton.next_power_of_2(pairs)
    block = max(_BLOCK // of_pairs, 1)
    shape = (groups, queries, head_size, pairs, of_pairs, block)
    kind = (is_backward, angles.is_interleaved, angles.positions is not None, len(sources) > 2)
    positions = angles.table_A2P if angles.positions is None else angles.positions
    tensors = (*sources, sources[1])[:3] + (*results, results[1])[:3]
    given = (*tensors, angles.table_A2P, positions, num_rows, batch, len(angles.table_A2P))
    start(_fused_rope, (-(-num_rows // block),), *given, constants=(*rows[0], *rows[1], *shape, *kind))


@triton.jit(do_not_specialize=("num_rows", "batch", "num_angles"))  # they differ by micro-batch
def _fused_rope(
    query_ptr,
    key_ptr,
    value_ptr,
    to_query_ptr,
    to_key_ptr,
    to_value_ptr,
    table_ptr,
    positions_ptr,
    num_rows,
    batch,
    num_angles,
    QUERY_ROW: tl.constexpr,
    KEY_ROW: tl.constexpr,
    TO_QUERY_ROW: tl.constexpr,
    TO_KEY_ROW: tl.constexpr,
    GROUPS: tl.constexpr,
    QUERIES: tl.constexpr,
    HEAD: tl.constexpr,
    HALF: tl.constexpr,
    PAIRS: tl.constexpr,
    ROWS: tl.constexpr,
    IS_BACKWARD: tl.constexpr,
    IS_INTERLEAVED: tl.constexpr,
    IS_PACKED: tl.constexpr,
    HAS_VALUES: tl.constexpr,
):
    # A row is one group of one token: groups follow each other in all tensors, so none is looked for.
    first = tl.program_id(0).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)[:, None]
    number = tl.program_id(0) * ROWS + row
    inside = number < num_rows
    token = number // GROUPS
    position = tl.load(positions_ptr + token, mask=inside, other=0) if IS_PACKED else token // batch
    # Padding behind the last sequence may go beyond the longest one's angles.
    place = tl.minimum(position, num_angles - 1).to(tl.int64) * (2 * HALF)
    pair = tl.arange(0, PAIRS)[None, :]
    rotates = inside & (pair < HALF)
    cos = tl.load(table_ptr + place + pair, mask=rotates, other=0.0)
    sin = tl.load(table_ptr + place + HALF + pair, mask=rotates, other=0.0)
    if IS_BACKWARD:
        sin = -sin
    source, target = query_ptr + first * QUERY_ROW + row * QUERY_ROW, to_query_ptr + first * TO_QUERY_ROW
    target += row * TO_QUERY_ROW
    for query in range(QUERIES):
        _rotate(source + query * HEAD, target + query * HEAD, cos, sin, inside, HEAD, HALF, PAIRS, IS_INTERLEAVED)
    source, target = key_ptr + first * KEY_ROW + row * KEY_ROW, to_key_ptr + first * TO_KEY_ROW + row * TO_KEY_ROW
    _rotate(source, target, cos, sin, inside, HEAD, HALF, PAIRS, IS_INTERLEAVED)
    if HAS_VALUES:
        source = value_ptr + first * KEY_ROW + row * KEY_ROW
        _copy(source, to_value_ptr + first * TO_KEY_ROW + row * TO_KEY_ROW, inside, HEAD)


@triton.jit
def _rotate(
    source,
    target,
    cos,
    sin,
    inside,
    HEAD: tl.constexpr,
    HALF: tl.constexpr,
    PAIRS: tl.constexpr,
    IS_INTERLEAVED: tl.constexpr,
):
    """One head of every row; the channels behind the rotated ones stay as they are."""
    element = target.dtype.element_ty
    if IS_INTERLEAVED:
        channel = tl.arange(0, 2 * PAIRS)[None, :]
        is_rotated = inside & (channel < 2 * HALF)
        both = tl.load(source + channel, mask=is_rotated, other=0.0).to(tl.float32)
        even, odd = tl.split(both.reshape(both.shape[0], PAIRS, 2))
        turned = tl.join(even * cos - odd * sin, odd * cos + even * sin).reshape(both.shape)
        tl.store(target + channel, turned.to(element), mask=is_rotated)
    else:
        pair = tl.arange(0, PAIRS)[None, :]
        is_rotated = inside & (pair < HALF)
        lower = tl.load(source + pair, mask=is_rotated, other=0.0).to(tl.float32)
        upper = tl.load(source + HALF + pair, mask=is_rotated, other=0.0).to(tl.float32)
        tl.store(target + pair, (lower * cos - upper * sin).to(element), mask=is_rotated)
        tl.store(target + HALF + pair, (upper * cos + lower * sin).to(element), mask=is_rotated)
    if HEAD > 2 * HALF:
        _copy(source + 2 * HALF, target + 2 * HALF, inside, HEAD - 2 * HALF)


@triton.jit
def _copy(source, target, inside, WIDTH: tl.constexpr):
    channel = tl.arange(0, triton.next_power_of_2(WIDTH))[None, :]
    is_copied = inside & (channel < WIDTH)
    tl.store(target + channel, tl.load(source + channel, mask=is_copied, other=0.0), mask=is_copied)
