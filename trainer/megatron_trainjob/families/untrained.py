"""Families that are known and not trained, each with the part that is missing, by model_type and by names of models."""

from __future__ import annotations

import re
from collections.abc import Mapping

_GEMMA4 = (
    "the towers of Gemma-4 are not trained here, its text decoder is: save that with transformers' "
    "{decoder}.from_pretrained and save_pretrained, which makes a model of type {kind}, and use it"
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
    "gemma4": _GEMMA4.format(decoder="Gemma4ForCausalLM", kind="gemma4_text"),
    "gemma4_unified": _GEMMA4.format(decoder="Gemma4UnifiedForCausalLM", kind="gemma4_unified_text"),
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
