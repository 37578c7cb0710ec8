"""Families that are known and not trained, each with the part that is missing, by model_type and by names of models."""

from __future__ import annotations

import re
from collections.abc import Mapping

_GEMMA4_UNIFIED = (
    "the images of Gemma-4-12B are not trained here, its text decoder is: save that with transformers' "
    "Gemma4UnifiedForCausalLM.from_pretrained and save_pretrained, which makes a model of type gemma4_unified_text, "
    "and use it"
)
_GEMMA4_SMALL = (
    "the embeddings that enter every layer of Gemma-4-E2B and -E4B are not trained here; larger models of Gemma-4 "
    "(26B-A4B, 31B) have none, use one of them"
)
_INTERNVL = (
    "this is InternVL in its first form, whose code lies beside its weights and is not run here; the same model for "
    "transformers has -hf behind its name (OpenGVLab/InternVL3-8B-hf, OpenGVLab/InternVL3_5-8B-HF), use that"
)
REASONS: Mapping[str, str] = {
    "internvl_chat": _INTERNVL,
    "gemma4_unified": _GEMMA4_UNIFIED,
}
"""Keys are model_type of config.json."""

_NAMES: Mapping[str, str] = {
    r"gemma-?4-e\d": _GEMMA4_SMALL,
    r"gemma-?4-12b": _GEMMA4_UNIFIED,
    r"internvl[\d_.]*-(gpt-oss-)?\d+b(-a\d+b)?(-instruct|-pretrained|-mpo|-preview)?$": _INTERNVL,
}
"""Patterns of names, in any case -> why such a model is not trained."""


def by_name(model: str) -> str:
    """Why a model of this name is not trained, "" for any other name. Its config.json says more."""
    last = model.rstrip("/").rpartition("/")[2]
    return next((reason for pattern, reason in _NAMES.items() if re.match(pattern, last, re.IGNORECASE)), "")
