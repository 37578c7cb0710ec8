"""The gated delta rule (Yang et al. 2024, arXiv 2412.06464), chunk by chunk in plain torch. Pure tensor math.

A head keeps a matrix S [key, value] over the tokens of one sequence. With decay a and strength b of a token:

    S <- a S,   S <- S + b k (v - S^T k)^T,   output = S^T q

Within a chunk the corrections u = b (v - S^T k) of all tokens solve one triangular system, because each depends on
those before it; between chunks only S is passed on.

Shape suffixes: B batch, T tokens of one sequence, N heads, K key channels, V value channels, C tokens of a chunk, M
chunks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_trainjob.memory.activation import DELTA_CHUNK as CHUNK

_EPSILON = 1e-6


def gated_delta_rule(
    query_BTNK: Tensor, key_BTNK: Tensor, value_BTNV: Tensor, log_decay: Tensor, strength: Tensor
) -> Tensor:
    """Outputs [B, T, N, V] in the type of the queries, from an empty state; computed in float32.

    log_decay, strength: [B, T, N], at most 0, and from 0 to 1. Queries and keys are normalized here.
    """
    tokens = query_BTNK.shape[1]
    query, key = (_by_chunk(_normalized(x.float())) for x in (query_BTNK, key_BTNK))
    query = query * query.shape[-1] ** -0.5
    value, strength = _by_chunk(value_BTNV.float()), _by_chunk(strength.float()[..., None])
    since_start = _by_chunk(log_decay.float()[..., None]).squeeze(-1).cumsum(-1)
    between = _decay_between(since_start)
    from_start = since_start.exp()[..., None]
    of_values, of_state = _corrections(key, value, strength, between, from_start)
    to_end = (since_start[..., -1:] - since_start).exp()[..., None]
    scores, reads, writes = (query @ key.mT) * between, query * from_start, key * to_end
    state = key.new_zeros(*key.shape[:2], key.shape[-1], value.shape[-1])
    outputs = []
    for chunk in range(key.shape[2]):
        correction = of_values[:, :, chunk] - of_state[:, :, chunk] @ state
        outputs.append(reads[:, :, chunk] @ state + scores[:, :, chunk] @ correction)
        state = state * from_start[:, :, chunk, -1:] + writes[:, :, chunk].mT @ correction
    whole_BNTV = torch.cat(outputs, dim=2)[:, :, :tokens]
    return whole_BNTV.transpose(1, 2).to(query_BTNK.dtype)


def _corrections(
    key: Tensor, value: Tensor, strength: Tensor, between: Tensor, from_start: Tensor
) -> tuple[Tensor, Tensor]:
    """The corrections of each chunk as (constant, factor of the state before it), [B, N, M, C, V] and [.., C, K]."""
    system = (strength * key) @ key.mT * between
    right = torch.cat((strength * value, strength * from_start * key), dim=-1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    of_values, of_state = torch.split(solved, [value.shape[-1], key.shape[-1]], dim=-1)
    return of_values, of_state


def _decay_between(since_start_BNMC: Tensor) -> Tensor:
    """The decay from one token of a chunk (columns) to another (rows), 0 for later ones: [B, N, M, C, C]."""
    size = since_start_BNMC.shape[-1]
    is_later = torch.ones(size, size, dtype=torch.bool, device=since_start_BNMC.device).triu(1)
    difference = since_start_BNMC[..., :, None] - since_start_BNMC[..., None, :]
    return difference.masked_fill(is_later, float("-inf")).exp()


def _normalized(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + _EPSILON)


def _by_chunk(x_BTND: Tensor) -> Tensor:
    """[B, N, M, C, D]; the last chunk is filled with zeros, which change no state and are cut off in the end."""
    missing = -x_BTND.shape[1] % CHUNK
    padded = torch.nn.functional.pad(x_BTND, (0, 0, 0, 0, 0, missing))
    return torch.unflatten(padded.transpose(1, 2), 2, (-1, CHUNK)).contiguous()
