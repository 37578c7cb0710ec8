"""What is replaced in megatron-core for speed on GPUs: kernels of our own with the same results (see changes)."""

from __future__ import annotations

from megatron_trainer.megatron.changes import ATTENTION, DISTRIBUTED_OPTIMIZER, EMBEDDINGS, Change

_DATA_PARALLEL = "megatron.core.distributed.distributed_data_parallel:DistributedDataParallel"

CHANGES_FOR_SPEED: tuple[Change, ...] = (
    Change(
        ours="megatron.patches.one_pass_update",
        why="Gradients are scaled, clipped and used, and main parameters copied, in a pass over all parameters each.",
        until="TransformerEngine's Adam takes a factor for gradients, writes the weights, and is as fast",
        backends="GPU",
        rests_on={
            f"{DISTRIBUTED_OPTIMIZER}._copy_main_params_to_model_params": "2dca79c16949",
            f"{DISTRIBUTED_OPTIMIZER}._copy_model_grads_to_main_grads": "27921989a6b6",
            f"{DISTRIBUTED_OPTIMIZER}.zero_grad": "2b43cb219a3c",
            "megatron.core.optimizer.optimizer:MegatronOptimizer.get_grads_for_grad_norm": "86b4623e73e4",
            "megatron.core.optimizer.optimizer:MixedPrecisionOptimizer.step_with_ready_grads": "bb3f323cb1e1",
            "megatron.core.optimizer.optimizer:ChainedOptimizer.step": "8d7e09efc5ce",
            "megatron.core.optimizer.clip_grads:clip_grad_by_total_norm_fp32": "19d15a603c4a",
            f"{_DATA_PARALLEL}.scale_gradients": "3a65893cce2b",
            "megatron.core.distributed.finalize_model_grads:finalize_model_grads": "3f44cc8723b8",
        },
    ),
    Change(
        ours="megatron.patches.swiglu",
        why="What torch.compile makes of SwiGLU reaches half of the memory's bandwidth in the backward pass, and takes "
        "the host long to start.",
        until="the compiled kernel computes each half once, and starts as fast",
        backends="GPU",
        rests_on={
            "megatron.core.fusions.fused_bias_swiglu:SwiGLUFunction.forward": "0b76e746c9f0",
            "megatron.core.fusions.fused_bias_swiglu:SwiGLUFunction.backward": "096a40a28fc7",
        },
    ),
    Change(
        ours="megatron.patches.rotation",
        why="Queries and keys are rotated by a kernel each, values are copied besides, and the three gradients are put "
        "together again: five passes over memory where one each way is enough.",
        until="fused_single_qkv_rope takes packed rows and partly rotated heads",
        backends="GPU",
        rests_on={
            f"{ATTENTION}:Attention.forward": "3575d9a5caad",
            f"{ATTENTION}:SelfAttention.get_query_key_value_tensors": "3f4f30155881",
            f"{EMBEDDINGS}.rope_utils:apply_rotary_pos_emb": "f550ca2c3032",
            "megatron.core.packed_seq_params:PackedSeqParams": "d07da2d51aa7",
        },
    ),
    Change(
        ours="lora.gated",
        why="The term of an adapter on the first linear is added by a kernel of its own before SwiGLU's reads the sum, "
        "and in the backward pass a third kernel reads what SwiGLU's wrote.",
        until="MLP takes the activation of the first linear's output as a module",
        backends="GPU",
        rests_on={
            "megatron.core.transformer.mlp:MLP.forward": "9ac56e9ef8c7",
            "megatron.core.fusions.fused_bias_swiglu:bias_swiglu_impl": "a1876cdd0071",
            "megatron.core.fusions.fused_bias_swiglu:SwiGLUFunction.forward": "0b76e746c9f0",
            "megatron.core.fusions.fused_bias_swiglu:SwiGLUFunction.backward": "096a40a28fc7",
        },
    ),
)
