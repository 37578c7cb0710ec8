"""Names and values of other trainers that are no argument here, with what stands for them or why nothing does.

Spelling alone would lead from many of them to an argument of another meaning.
"""

from __future__ import annotations

from collections.abc import Mapping

# Names of the same thing elsewhere, which edit distance would not find.
ELSEWHERE = {
    "learning_rate": "lr",
    "batch_size": "micro_batch_size",
    "per_device_train_batch_size": "micro_batch_size",
    "gradient_accumulation_steps": "global_batch_size",
    "warmup_ratio": "lr_warmup_fraction",
    "warmup_steps": "lr_warmup_iters",
    "lr_warmup_samples": "lr_warmup_iters",
    "lr_scheduler_type": "lr_decay_style",
    "lr_decay_samples": "lr_decay_iters",
    "max_steps": "train_iters",
    "train_samples": "train_iters",
    "max_grad_norm": "clip_grad",
    "optim": "optimizer",
    "epochs": "max_epochs",
    "model_name_or_path": "model",
    "pretrained_checkpoint": "load",
    "resume_from_checkpoint": "load",
    "max_seq_length": "max_length",
    "train_dataset": "dataset",
    "eval_dataset": "val_dataset",
    "validation_split": "split_dataset_ratio",
    "chat_template": "template",
    "prompt_template": "template",
    "gradient_checkpointing": "recompute_granularity",
    "recompute_activations": "recompute_granularity",
    "fp8": "fp8_format",
    "fp8_param": "fp8_param_gather",
    "num_moe_experts": "num_experts",
    "layernorm_epsilon": "norm_epsilon",
    "gated_linear_unit": "swiglu",
    "rope_scaling_factor": "rope_scaling",
    "use_rope_scaling": "rope_scaling",
    "rotary_seq_len_interpolation_factor": "rope_scaling",
    "use_flash_attn_3": "attention_backend",
    "mtp_layers": "mtp_num_layers",
    "num_layers_in_first_pipeline_stage": "decoder_first_pipeline_num_layers",
    "num_layers_in_last_pipeline_stage": "decoder_last_pipeline_num_layers",
    **dict.fromkeys(("root_image_dir", "image_folder", "image_dir", "media_dir", "media_root"), "image_root"),
    **{f"image_{name}": name for name in ("max_pixels", "min_pixels")},
    **dict.fromkeys(("freeze_vision_tower", "freeze_vision_model", "freeze_vision_encoder"), "freeze_vit"),
    **dict.fromkeys(("freeze_multi_modal_projector", "freeze_projector", "freeze_merger"), "freeze_aligner"),
    "freeze_language_model": "freeze_llm",
    **dict.fromkeys(("vision_lr", "vision_tower_lr"), "vit_lr"),
    **dict.fromkeys(("mm_projector_lr", "projector_lr", "merger_lr"), "aligner_lr"),
    "sequence_parallel_degree": "context_parallel_size",
    "ulysses_degree": "context_parallel_size",
    "evaluation_strategy": "eval_strategy",
    "save_retain_interval": "save_total_limit",
    "ref_model": "ref_load",
    "ref_adapters": "ref_adapter_load",
    "num_virtual_stages_per_pipeline_rank": "virtual_pipeline_model_parallel_size",
    "logging_dir": "tensorboard_dir",
    "tp": "tensor_model_parallel_size",
    "pp": "pipeline_model_parallel_size",
    "cp": "context_parallel_size",
    "ep": "expert_model_parallel_size",
    "etp": "expert_tensor_parallel_size",
    "vpp": "virtual_pipeline_model_parallel_size",
}

GENERATION = "which generates answers while it trains; this trainer generates nothing"
PIXELS = "whose tower runs as its config.json and processor say; remove it"
# Arguments of unsupported methods, with what such a method would need.
OTHER_METHODS: dict[str, tuple[frozenset[str], str]] = {
    "GRPO": (
        frozenset(
            {
                "use_vllm",
                "reward_funcs",
                "reward_model",
                "reward_weights",
                "num_generations",
                "steps_per_generation",
                "generation_batch_size",
                "max_completion_length",
                "log_completions",
                "importance_sampling_level",
                "epsilon",
                "epsilon_high",
                "delta",
                "dynamic_sample",
                "max_resample_times",
                "overlong_filter",
                "scale_rewards",
                "advantage_estimator",
                "offload_model",
                "offload_optimizer",
                "offload_bridge",
                "sleep_level",
                "tau_pos",
                "tau_neg",
                "num_iterations",
                "kl_in_reward",
                "multi_turn_scheduler",
                "max_turns",
                "async_generate",
                "top_entropy_quantile",
                "log_entropy",
            }
        ),
        GENERATION,
    ),
    "knowledge distillation (GKD)": (
        frozenset({"teacher_model", "teacher_model_type", "teacher_model_revision", "lmbda", "seq_kd", "sft_alpha"}),
        GENERATION,
    ),
    "models with images": (frozenset({"vit_attn_impl", "freeze_vit_layers"}), PIXELS),
}
# Values of other programs, with a message instead of the list of known values.
OTHER_VALUES: dict[tuple[str, str], str] = {
    **{("rlhf_type", kind): f"{kind} belongs to a method {GENERATION}" for kind in ("grpo", "gkd", "ppo")},
    ("optimizer", "adaptive_muon"): "adaptive_muon has a state that checkpoints do not include; use muon",
}
OTHER_PREFIXES = {"GRPO": ("vllm_", "rollout_", "sglang_"), "models with images": ("video_", "fps_", "image_")}

_SHARDED = (
    "shards weights over data-parallel ranks, which is not supported; use_distributed_optimizer shards the optimizer's "
    "state, tensor_model_parallel_size and pipeline_model_parallel_size the weights"
)
_FILES = "is about Megatron-LM's own data files; dataset names rows of text, and the tokenizer is the model's"
_END = "is decided by the job: runPolicy.activeDeadlineSeconds bounds its time, and a pod that has to end saves first"
_GRAPHS = "is about CUDA graphs, which repeat kernels for rows of one length, while rows here differ; remove it"
_OFFLOAD = (
    "moves activations to host memory, for which there is no argument; recompute_granularity saves their memory, and "
    "optimizer_cpu_offload that of the optimizer"
)
_PROFILER = (
    "is about a profiler, and none is built in; log_timers_to_tensorboard records the durations of parts of a step"
)
SHAPE = "is decided by the model's config.json; remove it"
_FOUR_BITS = "asks for 4-bit products, which are not supported; fp8_format has those of 8 bits"
DONE = "asks for what is done in any case; remove it"
_CONSTANT = "records what is the same in every step; remove it"
_OTHER_METHOD = "belongs to a method that is not supported; remove it"
_STAGES = "is decided by the number of stages and of their virtual chunks; remove it"
_INITIALIZATION = "is decided by initializer_range in the model's config.json; set that"
_DECAY_OF_WEIGHTS = "changes the weight decay during training, which is not supported; set weight_decay"
_SHUFFLE = "shuffles again in each epoch, as dataloader_type: cyclic does; single reads the data once in its order"
_TEXT_ALONE = (
    "leaves the tower out; freeze_vit: true and freeze_aligner: true train the language model alone; remove it"
)
_LARGER_STEPS = "changes the batch size during training, which is not supported; set global_batch_size"
# Arguments of Megatron-LM and of other trainers that have no counterpart, by what they are about.
WITHOUT_COUNTERPART: Mapping[str, str] = {
    **dict.fromkeys(("use_torch_fsdp2", "use_megatron_fsdp", "use_custom_fsdp", "fsdp", "fsdp_config"), _SHARDED),
    **dict.fromkeys(("data_parallel_sharding_strategy", "deepspeed", "zero_stage"), _SHARDED),
    **dict.fromkeys(("data_path", "train_data_path", "valid_data_path", "test_data_path", "data_args_path"), _FILES),
    **dict.fromkeys(("split", "data_cache_path", "mmap_bin_files", "no_mmap_bin_files", "vocab_file"), _FILES),
    **dict.fromkeys(("merge_file", "tokenizer_type", "tokenizer_model", "tokenizer_path", "vocab_size"), _FILES),
    **dict.fromkeys(("make_vocab_size_divisible_by", "num_dataset_builder_threads", "reset_position_ids"), _FILES),
    **dict.fromkeys(("reset_attention_mask", "eod_mask_loss", "create_attention_mask_in_dataloader"), _FILES),
    **dict.fromkeys(("exit_interval", "exit_duration_in_mins", "exit_signal_handler"), _END),
    **dict.fromkeys(("enable_cuda_graph", "external_cuda_graph", "cuda_graph_impl", "cuda_graph_scope"), _GRAPHS),
    **dict.fromkeys(("cuda_graph_modules", "cuda_graph_warmup_steps", "optimizer_cuda_graph"), _GRAPHS),
    **dict.fromkeys(("use_te_rng_tracker", "te_rng_tracker"), _GRAPHS),
    **dict.fromkeys(("cpu_offloading", "cpu_offloading_num_layers", "cpu_offloading_activations"), _OFFLOAD),
    **dict.fromkeys(("cpu_offloading_weights", "cpu_offloading_double_buffering"), _OFFLOAD),
    **dict.fromkeys(("fine_grained_activation_offloading", "offload_modules", "activation_offload_fraction"), _OFFLOAD),
    **dict.fromkeys(("profile", "profile_step_start", "profile_step_end", "profile_ranks"), _PROFILER),
    **dict.fromkeys(("use_pytorch_profiler", "record_memory_history", "memory_snapshot_path"), _PROFILER),
    **dict.fromkeys(("add_bias_linear", "squared_relu", "openai_gelu", "apply_layernorm_1p", "window_size"), SHAPE),
    **dict.fromkeys(("window_attn_skip_freq", "softmax_type", "no_rope_freq", "attention_output_gate"), SHAPE),
    **dict.fromkeys(("use_rotary_position_embeddings", "linear_attention_type", "mamba_state_dim"), SHAPE),
    **dict.fromkeys(("hybrid_attention_ratio", "moe_router_group_topk", "moe_router_num_groups", "hidden_act"), SHAPE),
    **dict.fromkeys(("moe_apply_probs_on_input", "persist_layer_norm", "qk_l2_norm", "quick_geglu"), SHAPE),
    **dict.fromkeys(("rampup_batch_size", "decrease_batch_size_if_needed", "auto_find_batch_size"), _LARGER_STEPS),
    **dict.fromkeys(("fp4", "fp4_format", "fp4_recipe", "fp4_param", "fp4_param_gather"), _FOUR_BITS),
    **dict.fromkeys(("use_mcore_models", "accumulate_allreduce_grads_in_fp32", "check_for_nan_in_loss_and_grad"), DONE),
    **dict.fromkeys(("log_batch_size_to_tensorboard", "log_world_size_to_tensorboard"), _CONSTANT),
    **dict.fromkeys(("overlap_p2p_comm", "batch_p2p_comm"), _STAGES),
    "init_method_std": _INITIALIZATION,
    "train_dataloader_shuffle": _SHUFFLE,
    "language_model_only": _TEXT_ALONE,
    **dict.fromkeys(("weight_decay_incr_style", "start_weight_decay", "end_weight_decay"), _DECAY_OF_WEIGHTS),
    **dict.fromkeys(("galore_rank", "use_galore", "loraplus_lr_ratio", "neftune_noise_alpha"), _OTHER_METHOD),
}
NO_FIELDS: Mapping[str, str] = {
    name: reason
    for name, reason in WITHOUT_COUNTERPART.items()
    if reason in (_FILES, _END, _PROFILER, _STAGES, _INITIALIZATION, _DECAY_OF_WEIGHTS, _LARGER_STEPS)
}
"""Those among them that Megatron-Core's configurations do not have, or that are decided here."""
PASSED_ON = "is a field of Megatron-Core's configuration without an argument; extra_megatron_kwargs passes it on"
# Fields of TransformerConfig and OptimizerConfig under which Megatron-LM has arguments too.
FIELDS_OF_MEGATRON = frozenset(
    (
        *("moe_router_force_load_balancing", "moe_router_padding_for_fp8", "moe_router_padding_for_quantization"),
        *("moe_router_fusion", "moe_router_topk_limited_devices", "moe_input_jitter_eps", "moe_per_layer_logging"),
        *("moe_pad_expert_input_to_capacity", "moe_permute_fusion_into_hybridep"),
        *("moe_flex_dispatcher_backend", "moe_deepep_num_sms", "moe_hybridep_num_sms", "moe_enable_routing_replay"),
        *("overlap_moe_expert_parallel_comm", "delay_wgrad_compute", "distribute_saved_activations"),
        *("overlap_param_gather_with_optimizer_step", "reuse_grad_buf_for_mxfp8_param_ag"),
        *("hierarchical_context_parallel_sizes", "hybrid_context_parallel", "defer_embedding_wgrad_compute"),
        *("wgrad_deferral_limit", "overlap_p2p_comm_warmup_flush"),
        *("microbatch_group_size_per_vp_stage", "tp_comm_bootstrap_backend", "tp_comm_overlap_ag"),
        *("tp_comm_overlap_rs", "tp_comm_overlap_disable_qkv", "tp_comm_overlap_disable_fc1", "tp_only_amax_red"),
        *("account_for_embedding_in_pipeline_split", "account_for_loss_in_pipeline_split"),
        *("fp8_margin", "fp8_interval", "fp8_wgrad", "fp8_dot_product_attention", "fp8_multi_head_attention"),
        *("first_last_layers_bf16", "num_layers_at_start_in_bf16"),
        *("num_layers_at_end_in_bf16", "initial_loss_scale", "min_loss_scale", "loss_scale_window", "hysteresis"),
        *("fp32_residual_connection", "decoupled_weight_decay", "log_num_zeros_in_grad", "log_max_attention_logit"),
        *("embedding_init_method_std", "memory_efficient_layer_norm"),
        *("qk_clip", "qk_clip_alpha", "qk_clip_threshold", "mtp_use_repeated_layer", "muon_coefficient_type"),
        *("muon_scalar_optimizer", "overlap_cpu_optimizer_d2h_h2d", "use_torch_optimizer_for_cpu_offload"),
        *("pin_cpu_grads", "pin_cpu_params", "use_transformer_engine_op_fuser", "use_ring_exchange_p2p"),
        *("batch_invariant_mode", "grad_norm_skip_threshold", "quant_recipe", "high_priority_a2a_comm_stream"),
    )
)
