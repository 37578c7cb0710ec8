"""Families that are known and not trained, each with the part that is missing, by model_type and by names of models."""

from __future__ import annotations

import re
from collections.abc import Mapping

_GEMMA4 = (
    "Gemma-4 is not trained here: megatron-core builds all layers with heads of one width, and its layers of full "
    "attention have wider heads than those with a window, another number of key-value heads and, in part, keys in "
    "place of values; its norms of values, rotary positions by kind of layer and experts beside a dense block are "
    "missing too"
)
_LLAMA4 = (
    "the vision tower of Llama-4 is not trained here, its text decoder is: save that with transformers' "
    "Llama4ForCausalLM.from_pretrained and save_pretrained, which makes a model of type llama4_text, and use it"
)
_INTERNVL = (
    "this is InternVL in its first form, whose code lies beside its weights and is not run here; the same model for "
    "transformers has -hf behind its name (OpenGVLab/InternVL3-8B-hf, OpenGVLab/InternVL3_5-8B-HF), use that"
)
REASONS: Mapping[str, str] = {
    "llama4": _LLAMA4,
    "internvl_chat": _INTERNVL,
    **dict.fromkeys(("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"), _GEMMA4),
}
"""Keys are model_type of config.json."""

_NAMES: Mapping[str, str] = {
    r"gemma-?4": "gemma4",
    r"llama-?4-(scout|maverick)": "llama4",
    r"internvl[\d_.]*-(gpt-oss-)?\d+b(-a\d+b)?(-instruct|-pretrained|-mpo|-preview)?$": "internvl_chat",
}
"""Patterns of names, in any case -> model_type."""


def by_name(model: str) -> str:
    """Why a model of this name is not trained, "" for any other name. Its config.json says more."""
    last = model.rstrip("/").rpartition("/")[2]
    return next((REASONS[kind] for pattern, kind in _NAMES.items() if re.match(pattern, last, re.IGNORECASE)), "")
