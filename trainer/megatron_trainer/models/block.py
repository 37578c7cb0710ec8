"""The layer specifications of this pipeline stage: which module is used where in each layer."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Literal

from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_submodules,
    get_gpt_layer_with_transformer_engine_submodules,
)
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import TransformerConfig, TransformerLayer, multi_latent_attention
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.multi_token_prediction import MultiTokenPredictionBlockSubmodules, get_mtp_layer_spec
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_layer import (
    TransformerLayerSubmodules,
    get_transformer_layer_offset,
)

from megatron_trainer.models.experts_beside_dense import with_experts_beside_dense
from megatron_trainer.models.layer_kinds import ScaledPostNormAdd, with_own_attention
from megatron_trainer.models.layers import (
    AttentionOnPlainQueries,
    OwnOutputLinear,
    PostNormAdd,
    ReplicatedLinear,
    RMSNorm,
    UnitNorm,
    with_bias,
)
from megatron_trainer.models.linear_attention import GatedDeltaNet, Linears
from megatron_trainer.models.local_attention import CoreAttention
from megatron_trainer.models.prediction import PredictionLayer
from megatron_trainer.models.spec import ModelSpec

Implementation = Literal["local", "transformer_engine"]


def block_spec(
    spec: ModelSpec,
    config: TransformerConfig,
    implementation: Implementation,
    virtual_stage: int | None,
    layer: type[TransformerLayer],
    *,
    left_padded: bool = False,
) -> TransformerBlockSubmodules:
    """The layers of this stage, dense or with experts as in the model, and the final norm.

    left_padded: rows have padding before their tokens, which attention must mask.
    """
    first = get_transformer_layer_offset(config, vp_stage=virtual_stage)
    number = get_num_layers_to_build(config, vp_stage=virtual_stage)
    flags = _layers_with_experts(config)
    layers = [
        _module(
            spec,
            config,
            implementation,
            layer,
            flags[index],
            is_linear=spec.model.is_linear(index),
            is_rotated=spec.model.is_rotated(index),
            left_padded=left_padded,
            index=index,
        )
        for index in range(first, first + number)
    ]
    return TransformerBlockSubmodules(layer_specs=layers, layer_norm=_final_norm(implementation))


def prediction_spec(
    spec: ModelSpec,
    config: TransformerConfig,
    implementation: Implementation,
    layer: type[TransformerLayer],
    *,
    left_padded: bool = False,
) -> MultiTokenPredictionBlockSubmodules:
    """The multi-token-prediction layers, each around a layer like the decoder's last one. left_padded: as above."""
    has_experts = _layers_with_experts(config)[-1]
    inner = _module(spec, config, implementation, layer, has_experts, left_padded=left_padded)
    one = get_mtp_layer_spec(inner, use_transformer_engine=implementation == "transformer_engine")
    norm = _final_norm(implementation)
    parts = replace(one.submodules, enorm=norm, hnorm=norm, layer_norm=norm)
    layers = [ModuleSpec(module=PredictionLayer, submodules=parts)] * config.mtp_num_layers
    return MultiTokenPredictionBlockSubmodules(layer_specs=layers)


def _module(
    spec: ModelSpec,
    config: TransformerConfig,
    implementation: Implementation,
    layer: type[TransformerLayer],
    has_experts: bool,  # noqa: FBT001 - a value, not an option
    *,
    left_padded: bool,
    is_linear: bool = False,
    is_rotated: bool = True,
    index: int = 0,
) -> ModuleSpec:
    part = _layer(spec, config, implementation, has_experts=has_experts)
    if spec.model.wide is not None:
        part = with_own_attention(part, spec.model, index)
    if spec.model.unit_qk_norm:
        part = _with_unit_norms(part, is_rotated=is_rotated)
    if is_linear:
        return ModuleSpec(module=layer, submodules=_with_linear_attention(part, spec, implementation))
    sees_whole = bool(spec.model.vision and spec.model.vision.sees_whole) and spec.model.window_layers[index]
    if implementation == "transformer_engine" and (left_padded or sees_whole):
        part = _with_masked_attention(part, sees_whole=sees_whole)
    return ModuleSpec(module=layer, submodules=part)


def _with_unit_norms(layer: TransformerLayerSubmodules, *, is_rotated: bool) -> TransformerLayerSubmodules:
    """Norms without a weight on queries and keys, only where these are rotated; a rotation keeps the norm."""
    norm = UnitNorm if is_rotated else IdentityOp
    attention = replace(layer.self_attention.submodules, q_layernorm=norm, k_layernorm=norm)
    return replace(layer, self_attention=replace(layer.self_attention, submodules=attention))


def _layers_with_experts(config: TransformerConfig) -> list[bool]:
    if config.num_moe_experts is None:
        return [False] * config.num_layers
    return [bool(flag) for flag in config.moe_layer_freq]


def _final_norm(implementation: Implementation) -> type:
    if implementation == "local":
        return RMSNorm
    from megatron.core.extensions.transformer_engine import TENorm

    fused: type = TENorm
    return fused


def _layer(
    spec: ModelSpec, config: TransformerConfig, implementation: Implementation, *, has_experts: bool
) -> TransformerLayerSubmodules:
    is_local = implementation == "local"
    make = get_gpt_layer_local_submodules if is_local else get_gpt_layer_with_transformer_engine_submodules
    layer = make(
        num_experts=config.num_moe_experts if has_experts else None,
        moe_grouped_gemm=config.moe_grouped_gemm,
        qk_layernorm=config.qk_layernorm,
        multi_latent_attention=config.multi_latent_attention,
    )
    if is_local:
        layer = _with_local_parts(layer)
    return _with_family_parts(layer, spec, config, has_experts=has_experts)


def _with_local_parts(layer: TransformerLayerSubmodules) -> TransformerLayerSubmodules:
    """Our norm and attention in place of megatron-core's local ones."""
    attention = layer.self_attention.submodules
    parts: dict[str, Any] = {"core_attention": CoreAttention}
    for name in ("q_layernorm", "k_layernorm", "kv_layernorm"):
        if getattr(attention, name, IdentityOp) is not IdentityOp:
            parts[name] = RMSNorm
    if hasattr(attention, "linear_kv_down_proj"):
        # megatron-core accepts only classes that it knows by identity; `Linear` is None there without TE.
        multi_latent_attention.Linear = ReplicatedLinear
        parts |= {"linear_q_down_proj": ReplicatedLinear, "linear_kv_down_proj": ReplicatedLinear}
    return replace(
        layer,
        input_layernorm=RMSNorm,
        pre_mlp_layernorm=RMSNorm,
        self_attention=replace(layer.self_attention, submodules=replace(attention, **parts)),
    )


def _with_linear_attention(
    layer: TransformerLayerSubmodules, spec: ModelSpec, implementation: Implementation
) -> TransformerLayerSubmodules:
    """A gated delta net in place of attention. Its norm is a module of its own: two projections follow it."""
    linears = Linears(column=ColumnParallelLinear, row=RowParallelLinear)
    if implementation == "transformer_engine":
        from megatron.core.extensions.transformer_engine import TEColumnParallelLinear, TERowParallelLinear

        linears = Linears(column=TEColumnParallelLinear, row=TERowParallelLinear)
    names = {key: name for key, name in layer.sharded_state_dict_keys_map.items() if key != "input_layernorm."}
    delta_net = ModuleSpec(module=GatedDeltaNet, params={"sizes": spec.model.linear}, submodules=linears)
    norm = _final_norm(implementation)
    return replace(layer, self_attention=delta_net, input_layernorm=norm, sharded_state_dict_keys_map=names)


def _with_masked_attention(layer: TransformerLayerSubmodules, *, sees_whole: bool) -> TransformerLayerSubmodules:
    """Attention that reads the mask. sees_whole: tokens of images see their whole image."""
    from megatron_trainer.models.engine_layers import LeftPaddedAttention, WholeImageAttention

    kind = WholeImageAttention if sees_whole else LeftPaddedAttention
    attention = replace(layer.self_attention.submodules, core_attention=kind)
    return replace(layer, self_attention=replace(layer.self_attention, submodules=attention))


def _with_biased_experts(mlp: partial[Any], implementation: Implementation) -> partial[Any]:
    """Experts whose second linear returns a tensor of its own."""
    linear: type = OwnOutputLinear
    if implementation == "transformer_engine":
        from megatron_trainer.models.engine_layers import OwnOutputEngineLinear

        linear = OwnOutputEngineLinear
    parts = mlp.keywords["submodules"]
    linears = replace(parts.experts.keywords["submodules"], linear_fc2=linear)
    return partial(mlp.func, submodules=replace(parts, experts=partial(parts.experts.func, submodules=linears)))


def _with_family_parts(
    layer: TransformerLayerSubmodules, spec: ModelSpec, config: TransformerConfig, *, has_experts: bool
) -> TransformerLayerSubmodules:
    """Biases and norms that only some families have."""
    attention = layer.self_attention.submodules
    if spec.model.output_bias or config.add_bias_linear:
        attention = replace(attention, linear_proj=with_bias(attention.linear_proj, has_bias=spec.model.output_bias))
    if config.add_bias_linear:
        attention = replace(attention, linear_qkv=with_bias(attention.linear_qkv, has_bias=spec.model.qkv_bias))
    layer = replace(layer, self_attention=replace(layer.self_attention, submodules=attention))
    if spec.model.expert_bias and has_experts and not config.moe_grouped_gemm:
        layer = replace(layer, mlp=_with_biased_experts(layer.mlp, config.transformer_impl))
    if spec.model.mlp_bias and not has_experts:
        mlp = layer.mlp.keywords["submodules"]
        mlp = replace(mlp, linear_fc1=with_bias(mlp.linear_fc1), linear_fc2=with_bias(mlp.linear_fc2))
        layer = replace(layer, mlp=partial(layer.mlp.func, submodules=mlp))
    if spec.model.has_latent_attention and config.q_lora_rank is None:
        layer = replace(layer, self_attention=replace(layer.self_attention, module=AttentionOnPlainQueries))
    if spec.model.post_norms:
        post_norm = ModuleSpec(module=PostNormAdd, params={"config": config})
        end = ModuleSpec(module=ScaledPostNormAdd, params={"config": config}) if spec.model.layer_scales else post_norm
        layer = replace(layer, self_attn_bda=post_norm, mlp_bda=end)
    if spec.model.experts_beside_dense and has_experts:
        layer = with_experts_beside_dense(layer)
    return layer
