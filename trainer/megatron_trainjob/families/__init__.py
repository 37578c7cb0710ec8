"""Model families as records without tensors: `FAMILIES` lists all of them, `read` interprets a config.json.

Rules, `mtj plan`, memory, FLOPs, validation, the docs and the trainer read models only through this package.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from megatron_trainjob.families.deepseek import DEEPSEEK_V2, DEEPSEEK_V3, KIMI_K2
from megatron_trainjob.families.dots import DOTS1
from megatron_trainjob.families.family import Family
from megatron_trainjob.families.gemma4 import GEMMA4_TEXT, GEMMA4_UNIFIED_TEXT
from megatron_trainjob.families.gemma4_vision import GEMMA4
from megatron_trainjob.families.glm import GLM, GLM4, GLM4_MOE, GLM4_MOE_LITE
from megatron_trainjob.families.glm4v import GLM4V, GLM4V_MOE
from megatron_trainjob.families.gpt_oss import GPT_OSS
from megatron_trainjob.families.internvl import INTERNVL, INTERNVL_GPT_OSS, INTERNVL_QWEN3, INTERNVL_QWEN3_MOE
from megatron_trainjob.families.llama import ERNIE4_5, INTERNLM3, LLAMA, MISTRAL, SEED_OSS, SMOLLM3
from megatron_trainjob.families.llama4 import LLAMA4_TEXT
from megatron_trainjob.families.llama4_vision import LLAMA4
from megatron_trainjob.families.mixtral import MIXTRAL
from megatron_trainjob.families.model import Model
from megatron_trainjob.families.phi import PHI3
from megatron_trainjob.families.qwen import QWEN2, QWEN2_MOE, QWEN3, QWEN3_MOE
from megatron_trainjob.families.qwen3_5 import QWEN3_5, QWEN3_5_MOE, QWEN3_5_MOE_TEXT, QWEN3_5_TEXT
from megatron_trainjob.families.qwen_next import QWEN3_NEXT
from megatron_trainjob.families.qwen_vl import QWEN2_5_VL, QWEN2_VL, QWEN3_VL, QWEN3_VL_MOE

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        LLAMA,
        MISTRAL,
        QWEN2,
        QWEN3,
        QWEN2_MOE,
        QWEN3_MOE,
        QWEN3_NEXT,
        MIXTRAL,
        DEEPSEEK_V2,
        DEEPSEEK_V3,
        KIMI_K2,
        GLM,
        GLM4,
        GLM4_MOE,
        GLM4_MOE_LITE,
        DOTS1,
        SEED_OSS,
        ERNIE4_5,
        PHI3,
        INTERNLM3,
        SMOLLM3,
        GPT_OSS,
        LLAMA4_TEXT,
        GEMMA4_TEXT,
        GEMMA4_UNIFIED_TEXT,
        QWEN2_VL,
        QWEN2_5_VL,
        QWEN3_VL,
        QWEN3_VL_MOE,
        QWEN3_5,
        QWEN3_5_MOE,
        QWEN3_5_TEXT,
        QWEN3_5_MOE_TEXT,
        INTERNVL,
        INTERNVL_QWEN3,
        INTERNVL_QWEN3_MOE,
        INTERNVL_GPT_OSS,
        GLM4V,
        GLM4V_MOE,
        GEMMA4,
        LLAMA4,
    )
}
"""Keys are `model_type` of config.json; of records that share one, a name for each."""

_BY_TEXT = {(family.stored_type, family.text_type): family for family in FAMILIES.values() if family.stored_type}


def of(raw: Mapping[str, Any]) -> Family | None:
    """The family of a config.json, as stored or flat; None for one that is not known."""
    kind, text = str(raw.get("model_type")), raw.get("text_config")
    inner = text.get("model_type") if isinstance(text, Mapping) else None
    if inner is not None and any(kind == stored for stored, _ in _BY_TEXT):
        return _BY_TEXT.get((kind, str(inner)))
    return FAMILIES.get(kind)


def texts_of(stored_type: str) -> tuple[str, ...]:
    """The text models that files of this model_type may have inside; () where the type says it alone."""
    return tuple(text for stored, text in _BY_TEXT if stored == stored_type)


def flat(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The content of a config.json with the keys of a text model inside at the top; others are left as they are."""
    family = of(raw)
    return family.flat(raw) if family else raw


class Shared(dict[str, Any]):
    """A flat config.json that many ask about, a copy that no one changes: its model is read once for all of them."""

    @cached_property
    def model(self) -> Model | ValueError:
        """What `read` returns or raises."""
        try:
            return _read(self)
        except ValueError as error:
            return error


def read(raw: Mapping[str, Any]) -> Model:
    """The model described by this config.json.

    Raises ValueError for an unknown family, or a value that its family cannot read.
    """
    if not isinstance(raw, Shared):
        return _read(raw)
    if isinstance(raw.model, ValueError):
        raise raw.model.with_traceback(None)
    return raw.model


def _read(raw: Mapping[str, Any]) -> Model:
    family = of(raw)
    if family is None:
        raise ValueError(f"model_type {raw.get('model_type')!r} is not one of {', '.join(FAMILIES)}")
    config = family.config(raw)
    problems = [str(problem) for problem in config.problems()]
    if problems:
        raise ValueError("; ".join(problems))
    return family.build(config)
