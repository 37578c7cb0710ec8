"""16-bit training."""

from dataclasses import dataclass

from megatron_trainjob.args.field import EVERY_TASK, arg


@dataclass(frozen=True, kw_only=True)
class MixedPrecision:
    """16-bit training."""

    fp16: bool | None = arg(
        None,
        "Train in float16 with loss scaling (from 65,536 down and up); unset: if the model is stored in float16.",
        applies_to=EVERY_TASK,
        hf_config_keys=("torch_dtype",),
        status="works",
    )
    bf16: bool | None = arg(
        None,
        "Train in bfloat16; unset: if the model is stored in bfloat16.",
        applies_to=EVERY_TASK,
        hf_config_keys=("torch_dtype",),
        status="works",
    )
    apply_query_key_layer_scaling: bool | None = arg(
        None,
        "Divide attention scores by the layer number before the softmax, and multiply them by it inside.",
        status="no effect",
        fulfilled=(True, False),
        reason="it prevents float16 scores from overflowing, but the attention kernels here keep scores in float32",
    )
    attention_softmax_in_fp32: bool = arg(
        True,
        "Compute attention mask and softmax in float32.",
        status="no effect",
        reason="the attention kernels used here always compute the softmax in float32",
    )
