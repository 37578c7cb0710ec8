"""Models: which families there are, and how one becomes a megatron-core model. `FAMILIES` lists every
family.
"""

from __future__ import annotations

from megatron_trainer.models.families.deepseek import DEEPSEEK_V2, DEEPSEEK_V3
from megatron_trainer.models.families.dots import DOTS1
from megatron_trainer.models.families.glm import GLM, GLM4, GLM4_MOE
from megatron_trainer.models.families.llama import ERNIE4_5, LLAMA, MISTRAL, SEED_OSS
from megatron_trainer.models.families.mixtral import MIXTRAL
from megatron_trainer.models.families.phi import PHI3
from megatron_trainer.models.families.qwen import QWEN2, QWEN2_MOE, QWEN3, QWEN3_MOE
from megatron_trainer.models.family import Family

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        LLAMA,
        MISTRAL,
        QWEN2,
        QWEN3,
        QWEN2_MOE,
        QWEN3_MOE,
        MIXTRAL,
        DEEPSEEK_V2,
        DEEPSEEK_V3,
        GLM,
        GLM4,
        GLM4_MOE,
        DOTS1,
        SEED_OSS,
        ERNIE4_5,
        PHI3,
    )
}
"""By the `model_type` of config.json."""
