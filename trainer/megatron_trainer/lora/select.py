"""Selects the modules that get adapters and those that train in full: pure rules over names.

Names are whole-model names (names.py). A name that matches nothing is reported together with the existing names: a typo
must not silently train less.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from megatron.core.transformer.moe.router import Router

from megatron_trainjob.families.vision import is_tower
from megatron_trainjob.violation import Violation

Kind = Literal["linear", "router", "embedding", "output"]

KEYWORDS: Mapping[str, Kind] = {
    "all-linear": "linear",
    "all-router": "router",
    "all-embedding": "embedding",
}
HUGGING_FACE_NAMES = {
    "q_proj": "linear_qkv",
    "k_proj": "linear_qkv",
    "v_proj": "linear_qkv",
    "o_proj": "linear_proj",
    "gate_proj": "linear_fc1",
    "up_proj": "linear_fc1",
    "gate_up_proj": "linear_fc1",
    "down_proj": "linear_fc2",
    "q_a_proj": "linear_q_down_proj",
    "q_b_proj": "linear_q_up_proj",
    "kv_a_proj_with_mqa": "linear_kv_down_proj",
    "kv_b_proj": "linear_kv_up_proj",
    "embed_tokens": "word_embeddings",
    "lm_head": "output_layer",
    "norm": "final_layernorm",
}


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Names of the modules to adapt, and the requested names that match no module here."""

    names: frozenset[str]
    unmatched: frozenset[str]


def kind(name: str, module: torch.nn.Module) -> Kind | None:
    """The kind of a module for an adapter; None for modules without a matrix to adapt (norms, containers, adapters)."""
    if is_tower(name):  # of the tower only linears, not its tables and kernels
        return "linear" if isinstance(module, torch.nn.Linear) else None
    if isinstance(module, Router):
        return "router"
    if name.endswith("word_embeddings"):
        return "embedding"
    if name.endswith("output_layer"):
        return "output"
    weight = getattr(module, "weight", getattr(module, "weight0", None))
    return "linear" if isinstance(weight, torch.Tensor) and weight.ndim == 2 else None


def targets(
    kinds: Mapping[str, Kind],
    target_modules: Iterable[str],
    target_regex: str | None,
    *,
    is_left_out: Callable[[str], bool] = lambda _: False,
) -> Selection:
    """The modules that get an adapter. kinds: every adaptable module, with its kind.

    target_regex, when given, has to match a whole name and replaces target_modules, whose entries are keywords
    or the last parts of names (`linear_qkv`, `self_attention.linear_proj`). is_left_out: modules that keywords skip.
    """
    if target_regex is not None:
        names = frozenset(name for name in kinds if re.fullmatch(target_regex, name))
        return Selection(names=names, unmatched=frozenset() if names else frozenset({target_regex}))
    meant = {name: kind for name, kind in kinds.items() if not is_left_out(name)}
    matches = {wish: _matching(meant if wish in KEYWORDS else kinds, wish) for wish in target_modules}
    return Selection(
        names=frozenset().union(*matches.values()),
        unmatched=frozenset(wish for wish, names in matches.items() if not names),
    )


def saved_modules(module_names: Iterable[str], modules_to_save: Iterable[str]) -> Selection:
    """The modules that train in full besides the adapters, by the last parts of their names."""
    names = frozenset(module_names)
    matches = {wish: frozenset(name for name in names if is_suffix(wish, name)) for wish in modules_to_save}
    return Selection(
        names=frozenset().union(*matches.values()),
        unmatched=frozenset(wish for wish, found in matches.items() if not found),
    )


def is_suffix(wish: str, name: str) -> bool:
    """Whether `wish` is the name or its last dotted parts."""
    return name == wish or name.endswith(f".{wish}")


def nothing_matches(argument: str, unmatched: Iterable[str], available: Iterable[str]) -> list[Violation]:
    """One violation for each requested name that matches no module of the whole model."""
    existing = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in available}))
    return [
        Violation(
            path=f"spec.args.{argument}",
            value=wish,
            message=f"matches no module of this model{_hint(wish)}; choose from: {existing}",
        )
        for wish in sorted(unmatched)
    ]


def _matching(kinds: Mapping[str, Kind], wish: str) -> frozenset[str]:
    if wish in KEYWORDS:
        return frozenset(name for name, kind in kinds.items() if kind == KEYWORDS[wish])
    return frozenset(name for name in kinds if is_suffix(wish, name))


def _hint(wish: str) -> str:
    if wish == "all-router":
        return " (only mixture-of-experts models have routers)"
    megatron_name = HUGGING_FACE_NAMES.get(wish)
    return f" (Hugging Face's {wish} is part of {megatron_name} here)" if megatron_name else ""
