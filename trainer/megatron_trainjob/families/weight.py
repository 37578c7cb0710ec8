"""One row of a weight table: which tensors of a checkpoint make up which parameter, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Rule = Literal["plain", "qkv", "gated_qkv", "fused_qkv", "qk", "channels", "gated", "fused_gated", "vocabulary"]


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One row, read in both directions.

    parameter: megatron-core's name in its local layer implementation, with {layer} and {expert} numbered over the whole
    model. names: the tensors of the Hugging Face checkpoint that hold it, in the order that the rule expects (see
    convert/rules.py).
    """

    parameter: str
    rule: Rule
    names: tuple[str, ...]


def plain(parameter: str, name: str) -> Weight:
    """One tensor that has the same layout on both sides."""
    return Weight(parameter=parameter, rule="plain", names=(name,))
