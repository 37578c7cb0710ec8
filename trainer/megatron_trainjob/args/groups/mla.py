"""Multi-head latent attention (DeepSeek); unset values come from the model's config.json."""

from dataclasses import dataclass

from megatron_trainjob.args.field import EVERY_TASK, arg


@dataclass(frozen=True, kw_only=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek); unset values come from the model's config.json."""

    multi_latent_attention: bool | None = arg(
        None,
        "Multi-head latent attention.",
        fallback=False,
        applies_to=EVERY_TASK,
        hf_config_keys=("kv_lora_rank",),
        status="works",
    )
    q_lora_rank: int | None = arg(
        None,
        "Rank of the query projection; none where it is not factored.",
        ge=1,
        applies_to=EVERY_TASK,
        hf_config_keys=("q_lora_rank",),
        status="works",
    )
    kv_lora_rank: int | None = arg(
        None,
        "Rank of the key-value projection.",
        ge=1,
        applies_to=EVERY_TASK,
        hf_config_keys=("kv_lora_rank",),
        status="works",
    )
    qk_head_dim: int | None = arg(
        None,
        "Width of the part of a query-key head without rotary positions.",
        ge=1,
        applies_to=EVERY_TASK,
        hf_config_keys=("qk_nope_head_dim",),
        status="works",
    )
    qk_pos_emb_head_dim: int | None = arg(
        None,
        "Width of the part of a query-key head with rotary positions.",
        ge=1,
        applies_to=EVERY_TASK,
        hf_config_keys=("qk_rope_head_dim",),
        status="works",
    )
