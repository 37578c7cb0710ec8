"""Names of chat templates in ms-swift, and the models whose own chat template each one is.

A model's own template is in its tokenizer files, so such a name selects nothing here and is accepted where it means
that one.
"""

from __future__ import annotations

from collections.abc import Mapping

OWN: Mapping[str, tuple[str, ...]] = {
    "qwen3": ("qwen3", "qwen3_moe"),
    "llama4": ("llama4", "llama4_text"),
    "kimi_k2": ("kimi_k2",),
    "glm4": ("glm4",),
    "glm4_7": ("glm4_moe_lite",),
    "internlm3": ("internlm3",),
    "gpt_oss": ("gpt_oss",),
    "seed_oss": ("seed_oss",),
    "dots1": ("dots1",),
    "ernie": ("ernie4_5",),
    "gemma4": ("gemma4", "gemma4_text", "gemma4_unified_text"),
    "qwen2_vl": ("qwen2_vl",),
    "qwen2_5_vl": ("qwen2_5_vl",),
    "qwen3_vl": ("qwen3_vl", "qwen3_vl_moe"),
    "qwen3_5": ("qwen3_5", "qwen3_5_moe", "qwen3_5_text", "qwen3_5_moe_text"),
    "glm4v": ("glm4v",),
    "glm4_5v": ("glm4v_moe",),
    "internvl_hf": ("internvl",),
}
"""Name -> the values of model_type whose models all have this template."""
OF_SOME: Mapping[str, tuple[str, ...]] = {
    "qwen": ("qwen2", "qwen2_moe"),
    **dict.fromkeys(("qwen2_5", "qwen2_5_math", "qwq", "qwq_preview", "marco_o1"), ("qwen2",)),
    "deepseek_r1": ("qwen2", "llama", "deepseek_v3"),
    **dict.fromkeys(("qwen3_thinking", "qwen3_nothinking"), ("qwen3", "qwen3_moe", "qwen3_next")),
    "qwen3_coder": ("qwen3_moe", "qwen3_next"),
    **dict.fromkeys(("qwen3_emb", "qwen3_reranker", "qwen3_guard"), ("qwen3",)),
    **dict.fromkeys(("qwen3_vl_emb", "qwen3_vl_reranker"), ("qwen3_vl",)),
    "llama": ("llama", "mistral", "mixtral"),
    **dict.fromkeys(("llama3_2", "deepseek_coder", "yi_coder", "reflection", "longwriter_llama"), ("llama",)),
    "deepseek": ("llama", "deepseek_v2"),
    "deepseek_v2_5": ("deepseek_v2", "deepseek_v3"),
    **dict.fromkeys(("deepseek_v3_1", "moonlight"), ("deepseek_v3",)),
    **dict.fromkeys(("mistral_nemo", "mistral_2501", "devstral"), ("mistral",)),
    **dict.fromkeys(("chatglm4", "glm4"), ("glm",)),
    "glm4_z1_rumination": ("glm4",),
    **dict.fromkeys(("glm4_5", "glm4_7"), ("glm4_moe",)),
    **dict.fromkeys(("phi3", "phi4"), ("phi3",)),
    "gemma4_nothinking": ("gemma4", "gemma4_text", "gemma4_unified_text"),
    "qvq": ("qwen2_vl",),
    **dict.fromkeys(("internvl2_5", "internvl3_5", "internvl3_5_gpt"), ("internvl",)),
}
"""Name -> values of model_type of which only some models have this template, which config.json does not tell."""
NAMES = frozenset((*OWN, *OF_SOME))


def is_own(template: str | None) -> bool:
    """Whether the model's own chat template renders, where the name has been accepted for it."""
    return template is None or template in NAMES


def models_of(name: str) -> tuple[str, ...]:
    """All values of model_type whose models may have this template."""
    return tuple(dict.fromkeys((*OWN.get(name, ()), *OF_SOME.get(name, ()))))
