"""Our kernel of rotary embedding beside megatron-core's functions: `python -m tests.support.models.rotation_cases`.

Prints the largest error of each case, outputs and gradients, relative to the largest of the expected. Triton interprets
the kernel (TRITON_INTERPRET=1), which must be said before it is imported.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from megatron.core.models.common.embeddings.rope_utils import apply_rotary_pos_emb
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from megatron_trainer.megatron.patches import rotation

_ONE_RANK: Any = SimpleNamespace(size=lambda: 1, rank=lambda: 0)


@dataclass(frozen=True, kw_only=True)
class Case:
    """lengths: of packed sequences, or of one that all rows of the batch have."""

    lengths: tuple[int, ...]
    groups: int
    queries: int
    head: int
    rotated: int
    batch: int | None = None
    is_interleaved: bool = False


CASES = {
    "one head each": Case(lengths=(7, 1, 30, 3), groups=4, queries=1, head=64, rotated=64),
    "grouped": Case(lengths=(16, 5), groups=2, queries=3, head=128, rotated=128),
    "half a head": Case(lengths=(9, 8), groups=3, queries=2, head=64, rotated=32),
    "three quarters": Case(lengths=(9, 4), groups=2, queries=2, head=128, rotated=96),
    "head of 96": Case(lengths=(4, 10), groups=1, queries=4, head=96, rotated=96),
    "head of 256": Case(lengths=(11, 2), groups=1, queries=2, head=256, rotated=256),
    "head of 80, a quarter": Case(lengths=(6, 7), groups=5, queries=1, head=80, rotated=20),
    "rows": Case(lengths=(13,), batch=3, groups=2, queries=2, head=64, rotated=64),
    "rows, half a head": Case(lengths=(12,), batch=2, groups=2, queries=1, head=128, rotated=64),
    "neighbors": Case(lengths=(9, 4), groups=2, queries=2, head=64, rotated=64, is_interleaved=True),
    "neighbors, half a head": Case(lengths=(9, 4), groups=2, queries=1, head=128, rotated=64, is_interleaved=True),
    "rows, neighbors": Case(lengths=(5,), batch=2, groups=1, queries=3, head=96, rotated=48, is_interleaved=True),
}


def angles_of(case: Case) -> Tensor:
    """[longest + 3, 1, 1, rotated channels], of other frequencies than any model's."""
    pairs = case.rotated // 2
    angles = torch.outer(torch.arange(max(case.lengths) + 3.0), 1.0 / 50.0 ** (torch.arange(pairs) / pairs))
    every = angles.repeat_interleave(2, -1) if case.is_interleaved else torch.cat((angles, angles), -1)
    return every[:, None, None]


def packed_of(case: Case) -> PackedSeqParams | None:
    if case.batch is not None:
        return None
    bounds = torch.tensor([0, *case.lengths]).cumsum(0, dtype=torch.int32)
    return PackedSeqParams(qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds)


def expected(case: Case, heads: Tensor, freqs: Tensor) -> Tensor:
    """What megatron-core makes of [S, B, N, D] without kernels, in float32."""
    config: Any = SimpleNamespace(apply_rope_fusion=False, rotary_interleaved=case.is_interleaved)
    packed = packed_of(case)
    if packed is None:
        turned: Tensor = apply_rotary_pos_emb(heads, freqs[: len(heads)], config, cp_group=_ONE_RANK)
        return turned
    bounds = packed.cu_seqlens_q
    turned = apply_rotary_pos_emb(heads.squeeze(1), freqs, config, cu_seqlens=bounds, cp_group=_ONE_RANK)
    return turned[:, None]


def errors(case: Case, device: str, dtype: torch.dtype) -> list[float]:
    """Of queries, keys and values, and of the gradient of all; then of those that are rotated behind norms."""
    torch.manual_seed(5)
    tokens = (sum(case.lengths), case.batch or 1)
    mixed = torch.randn(*tokens, case.groups, (case.queries + 2) * case.head).to(dtype)
    wide = mixed.float().requires_grad_()
    parts = wide.split([case.queries * case.head, case.head, case.head], -1)
    query, key = parts[0].reshape(*tokens, -1, case.head), parts[1]
    freqs = angles_of(case)
    wanted = [expected(case, query, freqs), expected(case, key, freqs), parts[2]]
    of_parts = [torch.randn(part.shape).to(dtype) for part in wanted]
    gradients = torch.autograd.grad(wanted, (wide, query, key), [part.float() for part in of_parts])
    found = _apart(case, mixed.to(device), [part.to(device) for part in of_parts])
    behind = _behind_norms(case, query, key, [part.to(device) for part in of_parts[:2]], device, dtype)
    return [*map(_error, found, [*wanted, gradients[0]]), *map(_error, behind, [*wanted[:2], *gradients[1:]])]


def _angles(case: Case, device: str) -> rotation.Angles:
    packed = packed_of(case)
    places = None if packed is None else rotation.positions_in(packed, sum(case.lengths)).to(device)
    made = rotation.table(angles_of(case).to(device), is_interleaved=case.is_interleaved)
    return rotation.Angles(table_A2P=made, is_interleaved=case.is_interleaved, positions=places)


def parts_of(case: Case, mixed: Tensor) -> list[Tensor]:
    """Queries, keys and values, each without gaps."""
    parts = rotation.apart(mixed, case.head, _angles(case, str(mixed.device)))
    assert all(part.is_contiguous() for part in parts)
    return list(parts)


def _apart(case: Case, mixed: Tensor, of_parts: list[Tensor]) -> list[Tensor]:
    parts = parts_of(case, mixed.requires_grad_())
    return [*parts, *torch.autograd.grad(parts, mixed, of_parts)]


def _behind_norms(
    case: Case, query: Tensor, key: Tensor, of_both: list[Tensor], device: str, dtype: torch.dtype
) -> list[Tensor]:
    heads = [part.detach().to(device, dtype).requires_grad_() for part in (query, key)]
    both = rotation.rotated(heads[0], heads[1], _angles(case, device))
    return [*both, *torch.autograd.grad(both, heads, of_both)]


def _error(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    return ((found.float().cpu() - wanted).abs().max() / wanted.abs().max()).item()


if __name__ == "__main__":
    device = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    dtype = torch.float16 if device == "cpu" else torch.bfloat16
    print(json.dumps({name: max(errors(case, device, dtype)) for name, case in CASES.items()}))
