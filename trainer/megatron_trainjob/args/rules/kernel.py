"""Which kernels run, determinism, and garbage collection."""

from __future__ import annotations

from megatron_trainjob.args.rules.condition import changed, is_, is_set
from megatron_trainjob.args.rules.pair import excludes, idle_without, needs

# Parts that only Transformer Engine has; with local layers they would have no effect.
OF_TRANSFORMER_ENGINE = ("tp_comm_overlap", "moe_grouped_gemm")

RULES = (
    *(
        idle_without(f"{name}_needs_transformer_engine", is_(name, True), is_("transformer_impl", "transformer_engine"))
        for name in OF_TRANSFORMER_ENGINE
    ),
    needs(
        "fp8_needs_transformer_engine",
        is_set("fp8_format"),
        is_("transformer_impl", "transformer_engine"),
    ),
    excludes(
        "deterministic_training_has_no_fused_cross_entropy",
        is_("deterministic_mode", True),
        is_("cross_entropy_loss_fusion", True),
        because="that kernel is not deterministic",
    ),
    idle_without(
        "a_cross_entropy_kernel_is_chosen_only_when_fused",
        changed("cross_entropy_fusion_impl"),
        is_("cross_entropy_loss_fusion", True),
    ),
    needs(
        "the_local_attention_backend_needs_local_layers",
        is_("attention_backend", "local"),
        is_("transformer_impl", "local"),
    ),
    idle_without("collections_have_an_interval_only_by_hand", changed("manual_gc_interval"), is_("manual_gc", True)),
)
