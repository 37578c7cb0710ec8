"""Everything in megatron-core that is replaced, wrapped, subclassed or modified, with the reason for each.

A change depends on internals of megatron-core, so each one holds a digest of the source it was written against
(register.digest).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Backends = Literal["CPU", "GPU", "CPU and GPU", "without TransformerEngine"]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One difference from megatron-core as installed.

    ours: the module that makes the change. why: what is wrong or missing. until: when the change can go.
    upstream: the upstream issue, or that there is none. rests_on: symbols of megatron-core (module:qualified name) that
    are changed or whose inner workings the change needs, each with the digest of its source.
    """

    ours: str
    why: str
    until: str
    backends: Backends
    rests_on: Mapping[str, str]
    upstream: str = "reported nowhere"


_RANDOM = "megatron.core.tensor_parallel.random"
DISTRIBUTED_OPTIMIZER = "megatron.core.optimizer.distrib_optimizer:DistributedOptimizer"
_FLOAT16_OPTIMIZER = "megatron.core.optimizer.optimizer:Float16OptimizerWithFloat16Params"
EMBEDDINGS = "megatron.core.models.common.embeddings"
ATTENTION = "megatron.core.transformer.attention"
_ROUTER = "megatron.core.transformer.moe.router:TopKRouter"
_EXPERTS = "megatron.core.transformer.moe.moe_layer:MoELayer"
_SHARED_EXPERTS = "megatron.core.transformer.moe.shared_experts:SharedExpertMLP"
_LATENT_ATTENTION = "megatron.core.transformer.multi_latent_attention:MLASelfAttention"
_PREDICTION = "megatron.core.transformer.multi_token_prediction"
_FILE_WRITER = "megatron.core.dist_checkpointing.strategies.filesystem_async"
_SAVE_STRATEGY = "megatron.core.dist_checkpointing.strategies.torch:TorchDistSaveShardedStrategy"

CHANGES: tuple[Change, ...] = (
    Change(
        ours="megatron.patches.on_cpu",
        why="Named random states access the CUDA generators; on a CPU dropout samples from torch's own generator.",
        until="megatron-core asks torch.accelerator for the generator",
        backends="CPU",
        rests_on={f"{_RANDOM}:_get_cuda_rng_state": "0c2b8f05b864", f"{_RANDOM}:_set_cuda_rng_state": "dea947ca0b7d"},
    ),
    Change(
        ours="megatron.patches.on_cpu",
        why="Token counts become numpy arrays only if they are on a GPU, but later code calls tolist() on them.",
        until="maybe_move_tensor_to_cpu converts tensors of any device",
        backends="CPU",
        rests_on={"megatron.core.transformer.moe.moe_utils:maybe_move_tensor_to_cpu": "47a1092f05ba"},
    ),
    Change(
        ours="megatron.patches.on_cpu",
        why="Recomputing a single module asks for the FP8 state under names that exist only with TransformerEngine.",
        until="CheckpointWithoutOutput checks whether TransformerEngine is installed",
        backends="CPU",
        rests_on={f"{_RANDOM}:CheckpointWithoutOutput": "5209ac7cdee4"},
    ),
    Change(
        ours="megatron.patches.on_cpu",
        why="Recomputed outputs share memory through a C++ extension that is compiled in the first backward pass.",
        until="the extension is shipped compiled, or copying is an option",
        backends="CPU",
        rests_on={f"{_RANDOM}:_get_share_storage": "14fe8bafdf5a"},
    ),
    Change(
        ours="megatron.patches.optimizer_state",
        why="Loading torch's Adam drops or aliases its step count, and a rank without parameters cannot save.",
        until="DistributedOptimizer restores torch.optim.Adam's step for each parameter",
        backends="without TransformerEngine",
        rests_on={
            f"{DISTRIBUTED_OPTIMIZER}.load_state_dict": "5c2af1e56e0b",
            f"{DISTRIBUTED_OPTIMIZER}._set_main_param_and_optimizer_states": "abb463384d3f",
            f"{DISTRIBUTED_OPTIMIZER}.state_dict": "8881ca2f5638",
        },
    ),
    Change(
        ours="megatron.patches.lion",
        why="Lion takes Adam's betas, and leaves everything but matrices to Adam.",
        until="the registry has an entry of its own for Lion",
        backends="CPU and GPU",
        rests_on={
            "megatron.core.optimizer.emerging_optimizers:_default_adam_based_eopt_config_to_kwargs": "136acdae435e",
            "megatron.core.optimizer.emerging_optimizers:EmergingOptimizerEntry": "55be225264a3",
        },
    ),
    Change(
        ours="megatron.patches.whole_tensors",
        why="Optimizer state that is sharded by whole tensors is wrapped and saved only in bfloat16.",
        until="LayerWiseDistributedOptimizer wraps and saves float32 parameters too",
        backends="CPU and GPU",
        rests_on={
            "megatron.core.optimizer.layer_wise_optimizer:LayerWiseDistributedOptimizer.__init__": "7484d33bd006",
            f"{_FLOAT16_OPTIMIZER}.sharded_state_dict": "20365b6e786a",
        },
    ),
    Change(
        ours="megatron.patches.whole_tensors",
        why="Experts that alone have data-parallel ranks are not distributed, and a save of all their copies hangs.",
        until="shard_params returns early only where neither dense parameters nor experts have such ranks",
        backends="CPU and GPU",
        rests_on={
            "megatron.core.optimizer.layer_wise_optimizer:LayerWiseDistributedOptimizer.shard_params": "69bcfd6c538f"
        },
    ),
    Change(
        ours="megatron.patches.optimizer_shards",
        why="A checkpoint for every layout gathers the whole optimizer state in the host memory of every rank.",
        until="megatron-core saves the shards as the ranks hold them (docs/decisions/0008)",
        backends="CPU and GPU",
        rests_on={
            f"{DISTRIBUTED_OPTIMIZER}.sharded_param_state_fully_reshardable": "132366305b19",
            f"{DISTRIBUTED_OPTIMIZER}.load_parameter_state_from_fully_reshardable": "45254edb9ab5",
            f"{DISTRIBUTED_OPTIMIZER}._get_main_param_and_optimizer_states": "0e8c885599cd",
        },
    ),
    Change(
        ours="megatron.patches.recomputed_bias",
        why="A feed-forward block with a bias, recomputed alone, returns that parameter; its backward pass never ends.",
        until="CheckpointFunction returns no parameter as it is, or MLP adds its bias when it is recomputed",
        backends="CPU and GPU",
        rests_on={
            "megatron.core.transformer.mlp:MLP.forward": "9ac56e9ef8c7",
            f"{_RANDOM}:CheckpointFunction": "1ff4e363bb98",
            "megatron.core.transformer.transformer_layer:TransformerLayer._forward_mlp": "80e4d958f8da",
        },
    ),
    Change(
        ours="megatron.patches.fused_adam",
        why="Saving and loading ask for float32 copies of the whole optimizer state, and remainders are no weights.",
        until="state_dict and load_state_dict leave the tensors alone, and param is the float32 main parameter",
        backends="GPU",
        rests_on={
            f"{DISTRIBUTED_OPTIMIZER}.load_state_dict": "5c2af1e56e0b",
            f"{DISTRIBUTED_OPTIMIZER}.state_dict": "8881ca2f5638",
            f"{DISTRIBUTED_OPTIMIZER}._get_main_param_and_optimizer_states": "0e8c885599cd",
            f"{DISTRIBUTED_OPTIMIZER}._set_main_param_and_optimizer_states": "abb463384d3f",
        },
    ),
    Change(
        ours="megatron.patches.router",
        why="Balancing losses of padded rows come out too strong by the size of the group.",
        until="get_tokens_per_expert_and_token_count returns the rank's own count of tokens",
        backends="CPU and GPU",
        rests_on={"megatron.core.transformer.moe.moe_utils:get_tokens_per_expert_and_token_count": "90c32c67f581"},
    ),
    Change(
        ours="megatron.patches.router",
        why="The padding mask is applied along the experts, so padding moves the expert bias.",
        until="_apply_expert_bias masks tokens",
        backends="CPU and GPU",
        rests_on={f"{_ROUTER}._apply_expert_bias": "f4d23ff356cc"},
    ),
    Change(
        ours="megatron.patches.router",
        why="The z-loss is the mean of the ranks' means, so that it depends on which rank has the padding of a row.",
        until="apply_z_loss divides by the tokens of all ranks that hold parts of a row",
        backends="CPU and GPU",
        rests_on={
            "megatron.core.transformer.moe.moe_utils:z_loss_func": "13a4c9fa6613",
            f"{_ROUTER}.apply_z_loss": "b16c325c880f",
        },
    ),
    Change(
        ours="megatron.patches.router",
        why="Sigmoid scores are always normalized, except for a single expert, and groups are ranked by one rule only.",
        until="topk_routing_with_score_function takes whether to normalize and how to rank groups",
        backends="CPU and GPU",
        rests_on={
            "megatron.core.transformer.moe.moe_utils:topk_routing_with_score_function": "ec1f4b908a23",
            f"{_ROUTER}.routing": "15e057bdae1c",
        },
    ),
    Change(
        ours="models.rope",
        why="Latent attention computes its own rotation, whose YaRN supports no attention_factor and no truncate.",
        until="latent attention takes frequencies and an attention factor as values",
        backends="CPU and GPU",
        rests_on={
            f"{EMBEDDINGS}.yarn_rotary_pos_embedding:YarnRotaryEmbedding.forward": "22ac6f1168b9",
            f"{EMBEDDINGS}.rotary_pos_embedding:RotaryEmbedding.forward": "c9271dae2145",
            f"{_LATENT_ATTENTION}.get_query_key_value_tensors": "ca4f9f9258a2",
        },
    ),
    Change(
        ours="models.build",
        why="The norms inside latent attention have the layer norms' epsilon; the models use a different one.",
        until="MLATransformerConfig has an epsilon for these norms",
        backends="CPU and GPU",
        rests_on={f"{_LATENT_ATTENTION}.__init__": "053da4ed0d50"},
    ),
    Change(
        ours="models.block",
        why="Latent attention compares linear classes by identity; one of the names is None without TransformerEngine.",
        until="linear_kv_down_proj may be any module",
        backends="CPU",
        rests_on={f"{_LATENT_ATTENTION}.__init__": "053da4ed0d50"},
    ),
    Change(
        ours="models.layers",
        why="Queries that are not compressed would get a norm that DeepSeek-V2-Lite does not have.",
        until="the norm of uncompressed queries can be left out by the specification",
        backends="CPU and GPU",
        rests_on={f"{_LATENT_ATTENTION}._resolve_qk_norm_config": "0489efcd55b0"},
    ),
    Change(
        ours="models.rope",
        why="Rotating a packed row by angles of the whole row asks the card for the bounds of each sequence.",
        until="_apply_rotary_pos_emb_thd takes such angles as they are where no ranks split the row",
        backends="CPU and GPU",
        rests_on={f"{EMBEDDINGS}.rope_utils:_apply_rotary_pos_emb_thd": "c721f4540e95"},
    ),
    Change(
        ours="models.padding",
        why="The feed-forward block of padded rows has no way to leave padding out (mlp_padding_free).",
        until="megatron-core passes a padding mask to dense blocks",
        backends="CPU and GPU",
        rests_on={
            "megatron.core.transformer.transformer_layer:TransformerLayer.forward": "3e58b8762fda",
            "megatron.core.transformer.transformer_layer:TransformerLayer._forward_attention": "7e745ae30dff",
            "megatron.core.transformer.transformer_layer:TransformerLayer._forward_mlp": "80e4d958f8da",
        },
    ),
    Change(
        ours="models.image_text",
        why="Features of a vision tower take the places of image tokens before embeddings are scattered, and positions "
        "have three axes, of the whole row where rows are packed.",
        until="GPTModel takes embeddings and angles that are made outside of it",
        backends="CPU and GPU",
        rests_on={
            "megatron.core.models.gpt.gpt_model:GPTModel._preprocess": "974b8774a685",
            "megatron.core.models.common.embeddings.rope_utils:_apply_rotary_pos_emb_thd": "c721f4540e95",
        },
    ),
    Change(
        ours="models.prediction",
        why="Losses of multi-token prediction take the logits of all tokens at once, padded columns included.",
        until="the losses of process_mtp_loss can be left to the output processor",
        backends="CPU and GPU",
        rests_on={
            "megatron.core.models.gpt.gpt_model:GPTModel._postprocess": "511185f2c6ad",
            f"{_PREDICTION}:MultiTokenPredictionBlock.forward": "eeb32ceee7e6",
        },
    ),
    Change(
        ours="models.prediction",
        why="Multi-token prediction moves the padding mask of hidden states along with the tokens.",
        until="MultiTokenPredictionLayer leaves padding_mask where it is",
        backends="CPU and GPU",
        rests_on={
            f"{_PREDICTION}:MultiTokenPredictionLayer._get_embeddings": "8de3e91b5c1e",
            f"{_PREDICTION}:MultiTokenPredictionLayer.forward": "a26edee9010b",
        },
    ),
    Change(
        ours="models.build",
        why="Rotary frequencies are those of the model's own code, scaling included, not megatron-core's variants.",
        until="GPTModel takes frequencies and an attention factor as values",
        backends="CPU and GPU",
        rests_on={
            f"{EMBEDDINGS}.rotary_pos_embedding:RotaryEmbedding.get_freqs_non_repeated": "02785920d530",
            f"{EMBEDDINGS}.yarn_rotary_pos_embedding:_yarn_get_concentration_factor_from_config": "cd066651ec0b",
        },
    ),
    Change(
        ours="models.local_attention",
        why="The local attention supports neither packed rows nor context parallelism, nor a sliding window with them.",
        until="the local attention covers what TransformerEngine's does",
        backends="CPU",
        rests_on={
            "megatron.core.transformer.dot_product_attention:DotProductAttention.__init__": "47acef8f68c6",
            "megatron.core.transformer.dot_product_attention:DotProductAttention.forward": "a0bbd121e290",
            "megatron.core.transformer.module:MegatronModule.__init__": "5b8b5da5b979",
        },
    ),
    Change(
        ours="models.linear_attention",
        why="The gated delta net needs a GPU and a kernel package, and knows no packed rows without it.",
        until="GatedDeltaNet builds on a CPU and its path without kernels takes packed rows",
        backends="CPU and GPU",
        rests_on={
            "megatron.core.ssm.gated_delta_net.common:_GDNBase.__init__": "70f2d1689c9b",
            "megatron.core.ssm.gated_delta_net.gdn:GatedDeltaNet.forward": "af42b6c984ae",
            "megatron.core.transformer.module:MegatronModule.__init__": "5b8b5da5b979",
        },
    ),
    Change(
        ours="models.experts_beside_dense",
        why="Gemma-4 has experts and a dense block in one layer, each between norms, and a router that scales.",
        until="shared experts and routed ones take norms of their own, and the router takes scales",
        backends="CPU and GPU",
        rests_on={
            f"{_SHARED_EXPERTS}.forward": "ad44b56bc79d",
            f"{_SHARED_EXPERTS}.sharded_state_dict": "f8cb8693f902",
            f"{_ROUTER}.forward": "580ce64cabab",
            f"{_ROUTER}.routing": "15e057bdae1c",
            f"{_EXPERTS}.preprocess": "eb533b45c804",
            f"{_EXPERTS}.postprocess": "a53f70903817",
        },
    ),
    Change(
        ours="models.layer_kinds",
        why="A configuration has one head size for all layers, and keys are never values (Gemma-4).",
        until="the configuration has head sizes by layer, and attention normalizes values and takes keys for them",
        backends="CPU and GPU",
        rests_on={
            f"{ATTENTION}:SelfAttention.__init__": "da0c27ea1f46",
            f"{ATTENTION}:SelfAttention.get_query_key_value_tensors": "3f4f30155881",
            f"{ATTENTION}:Attention.forward": "3575d9a5caad",
        },
    ),
    Change(
        ours="models.engine_layers",
        why="TransformerEngine's causal attention ignores the mask, so left padding would be attended to.",
        until="TEDotProductAttention passes the mask on for left padding",
        backends="GPU",
        rests_on={"megatron.core.extensions.transformer_engine:TEDotProductAttention": "90a07be0da03"},
    ),
    Change(
        ours="models.engine_layers",
        why="Experts add their bias in place to the second linear's output, a view that autograd refuses.",
        until="MLP adds the bias of experts to a tensor of its own",
        backends="CPU and GPU",
        rests_on={"megatron.core.transformer.mlp:MLP.forward": "9ac56e9ef8c7"},
    ),
    Change(
        ours="megatron.patches.sharding_check",
        why="The check that shards fit together raises on the first rank alone; the others wait for it in the save.",
        until="validate_sharding_integrity raises on all ranks",
        backends="CPU and GPU",
        rests_on={
            "megatron.core.dist_checkpointing.validation:validate_sharding_integrity": "90a6b3fce054",
            "megatron.core.dist_checkpointing.state_dict_utils:save_preprocess": "337ed1651376",
        },
    ),
    Change(
        ours="checkpoint.shards",
        why="An asynchronous save starts a process per rank and hangs if the first rank cannot write.",
        until="planning, writing and finalizing a save can be called separately",
        backends="CPU and GPU",
        rests_on={
            f"{_SAVE_STRATEGY}.async_save": "a5bc6d404cb2",
            f"{_SAVE_STRATEGY}._get_save_and_finalize_callbacks": "b82ee264aaaf",
            f"{_FILE_WRITER}:get_write_results_queue": "5528981e75e7",
            f"{_FILE_WRITER}:FileSystemWriterAsync": "de965c6b40ba",
        },
    ),
)
