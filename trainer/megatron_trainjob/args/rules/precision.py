"""16-bit and 8-bit training."""

from __future__ import annotations

from megatron_trainjob.args.rules.condition import changed, is_, is_set
from megatron_trainjob.args.rules.pair import excludes, idle_without

RULES = (
    excludes("one_16_bit_type", is_("fp16", True), is_("bf16", True)),
    excludes(
        "query_key_scaling_has_its_softmax_in_fp32",
        is_("apply_query_key_layer_scaling", True),
        is_("attention_softmax_in_fp32", False),
    ),
    *(
        idle_without(f"{name}_belongs_to_fp8", changed(name), is_set("fp8_format"))
        for name in ("fp8_recipe", "fp8_amax_history_len", "fp8_amax_compute_algo", "fp8_param_gather")
    ),
    *(
        idle_without(f"{name}_belongs_to_delayed_scaling", changed(name), is_("fp8_recipe", "delayed"))
        for name in ("fp8_amax_history_len", "fp8_amax_compute_algo")
    ),
)
