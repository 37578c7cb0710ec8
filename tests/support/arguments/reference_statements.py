"""For every requirement, conflict and rule that the reference states: our rule for it, or where else it is kept."""

STATES = ("requires", "requires_if", "conflicts", "code_rules", "forced_by", "overrides", "limits")

# (argument, statement) -> name of our rule.
RULED = {
    ("global_batch_size", "global_batch_size % (micro_batch_size * dp) == 0 with dp = world_size/(tp*pp*cp)"): (
        "the_global_batch_divides_over_the_ranks"
    ),
    (
        "recompute_granularity",
        "full needs recompute_method and recompute_num_layers set (Megatron raises otherwise)",
    ): "full_recomputation_has_a_method",
    ("recompute_granularity", "selective needs recompute_method and recompute_num_layers unset"): (
        "a_recompute_method_belongs_to_full_recomputation"
    ),
    ("recompute_method", "recompute_granularity=full"): "a_recompute_method_belongs_to_full_recomputation",
    ("recompute_method", "conflicts recompute_granularity=selective"): (
        "a_recompute_method_belongs_to_full_recomputation"
    ),
    ("recompute_num_layers", "recompute_granularity=full"): "recomputed_layers_belong_to_full_recomputation",
    ("recompute_num_layers", "1 <= value <= layers per pipeline stage"): "recomputed_layers_fit_into_each_stage",
    ("recompute_num_layers", "4.x docs: layers of the stage must be divisible by it"): (
        "recomputed_layers_fit_into_each_stage"
    ),
    ("recompute_modules", "recompute_granularity=selective"): ("recomputed_modules_belong_to_selective_recomputation"),
    ("recompute_modules", "moe_act needs moe_grouped_gemm=true"): (
        "recomputing_the_expert_activation_needs_grouped_experts"
    ),
    ("recompute_modules", "mla_up_proj needs multi_latent_attention=true"): (
        "recomputing_the_latent_projection_needs_latent_attention"
    ),
    # Megatron-Core 0.19 supports it with every recipe but delayed scaling.
    ("recompute_modules", "moe_act/layernorm conflict with fp8_format"): "delayed_fp8_scaling_recomputes_no_outputs",
    ("deterministic_mode", "conflicts cross_entropy_loss_fusion=true"): (
        "deterministic_training_has_no_fused_cross_entropy"
    ),
    ("train_iters", "one of train_iters / max_epochs must be set"): "the_length_of_the_run_is_given",
    ("train_iters", "required when streaming=true"): "a_stream_has_a_given_length",
    ("cross_entropy_fusion_impl", "only used when cross_entropy_loss_fusion=true"): (
        "a_cross_entropy_kernel_is_chosen_only_when_fused"
    ),
    ("attention_backend", "local only with the local layer spec"): "the_local_attention_backend_needs_local_layers",
    ("optimizer_offload_fraction", "only used when optimizer_cpu_offload=true"): "an_offload_fraction_needs_offload",
    ("optimizer_cpu_offload", "Megatron core_r0.13 asserts use_precision_aware_optimizer=true"): (
        "an_offloaded_optimizer_is_precision_aware"
    ),
    (
        "use_precision_aware_optimizer",
        "needs optimizer=adam and use_distributed_optimizer=true (Megatron)",
    ): "the_precision_aware_optimizer_is_adam",
    **{
        (name, statement): f"{name}_belongs_to_the_precision_aware_optimizer"
        for name in ("main_grads_dtype", "main_params_dtype", "exp_avg_dtype", "exp_avg_sq_dtype")
        for statement in (
            "use_precision_aware_optimizer=true",
            "any value but fp32 raises when use_precision_aware_optimizer=false",
        )
    },
    ("dataloader_type", "streaming=true -> external"): "a_stream_gives_its_own_order",
    ("manual_gc_interval", "only used when manual_gc=true; 0 = only around eval"): (
        "collections_have_an_interval_only_by_hand"
    ),
    ("num_workers", "streaming=true -> 1"): "a_stream_has_one_worker",
    ("seq_length", "max_position_embeddings >= seq_length"): "the_planned_sequence_fits_into_the_model",
    ("lr_warmup_iters", "must be 0 when lr_warmup_fraction is set"): "the_warmup_has_one_length",
    ("lr_warmup_fraction", "conflicts lr_warmup_iters>0"): "the_warmup_has_one_length",
    ("min_lr", "min_lr <= lr"): "the_learning_rate_falls",
    ("sgd_momentum", "only used when optimizer=sgd"): "momentum_belongs_to_sgd",
    ("exit_on_missing_checkpoint", "load"): "a_missing_checkpoint_is_tolerated_only_when_one_is_named",
    ("tensor_model_parallel_size", "world_size % (tp*pp*cp) == 0"): "the_ranks_divide_into_copies_of_the_model",
    ("tensor_model_parallel_size", "attention heads divisible by tp"): ("the_attention_heads_divide_over_tensor_ranks"),
    (
        "pipeline_model_parallel_size",
        "num_layers % pp == 0 unless decoder_first/last_pipeline_num_layers is set",
    ): "the_layers_divide_into_stages",
    ("decoder_first_pipeline_num_layers", "remaining layers must split evenly over the other stages"): (
        "the_layers_divide_into_stages"
    ),
    ("decoder_last_pipeline_num_layers", "remaining layers must split evenly over the other stages"): (
        "the_layers_divide_into_stages"
    ),
    ("sequence_parallel", "tensor_model_parallel_size>1"): "sequence_parallel_needs_tensor_parallel",
    ("sequence_parallel", "silently switched off when tensor_model_parallel_size=1"): (
        "sequence_parallel_needs_tensor_parallel"
    ),
    ("sequence_parallel", "MoE training with tensor_model_parallel_size>1 raises unless it is true"): (
        "tensor_parallel_experts_need_sequence_parallel"
    ),
    ("sequence_parallel", "conflicts mlp_padding_free=true"): "sequence_parallel_excludes_dropping_pad_tokens",
    ("tp_comm_overlap", "needs sequence_parallel=true"): "tensor_overlap_needs_sequence_parallel",
    ("overlap_param_gather", "needs use_distributed_optimizer=true and overlap_grad_reduce=true"): (
        "parameter_overlap_needs_gradient_overlap"
    ),
    ("eval_iters", "streaming=true -> explicit value"): "a_streamed_evaluation_has_a_given_length",
    ("eval_iters", "must be given explicitly when the validation set is streaming"): (
        "a_streamed_evaluation_has_a_given_length"
    ),
    ("fp8_recipe", "only used when fp8_format is set"): "fp8_recipe_belongs_to_fp8",
    ("fp8_param_gather", "needs fp8_format"): "fp8_param_gather_belongs_to_fp8",
    ("fp16", "conflicts bf16=true"): "one_16_bit_type",
    ("fp16", "conflicts expert_model_parallel_size>1"): "spread_experts_are_not_trained_in_fp16",
    ("bf16", "conflicts fp16=true"): "one_16_bit_type",
    ("apply_query_key_layer_scaling", "forces attention_softmax_in_fp32=true"): (
        "query_key_scaling_has_its_softmax_in_fp32"
    ),
    ("moe_router_pre_softmax", "required true when moe_router_topk=1"): "a_single_expert_is_chosen_after_the_softmax",
    ("moe_router_bias_update_rate", "only used when moe_router_enable_expert_bias=true"): (
        "a_bias_update_rate_needs_an_expert_bias"
    ),
    ("moe_router_enable_expert_bias", "needs moe_router_score_function=sigmoid"): (
        "an_expert_bias_needs_sigmoid_scores"
    ),
    ("expert_model_parallel_size", "needs num_experts"): "expert_model_parallel_size_needs_experts",
    ("expert_model_parallel_size", "num_experts % ep == 0"): "the_experts_divide_over_expert_ranks",
    ("expert_model_parallel_size", "conflicts fp16=true"): "spread_experts_are_not_trained_in_fp16",
    ("expert_model_parallel_size", "world_size % (etp*ep*pp) == 0"): "the_ranks_divide_into_copies_of_the_experts",
    ("expert_tensor_parallel_size", "world_size % (etp*ep*pp) == 0"): "the_ranks_divide_into_copies_of_the_experts",
    ("moe_enable_deepep", "moe_token_dispatcher_type=flex"): "deepep_needs_the_flex_dispatcher",
    ("moe_grouped_gemm", "Megatron: bf16 only, compute capability >= 8.0"): "grouped_experts_are_not_trained_in_fp16",
    ("moe_expert_capacity_factor", "only with load balancing aux_loss, seq_aux_loss or none"): (
        "limited_experts_are_not_balanced_by_sinkhorn"
    ),
    ("moe_shared_expert_overlap", "moe_shared_expert_intermediate_size"): "overlapped_shared_experts_exist",
    ("moe_shared_expert_overlap", "needs moe_token_dispatcher_type=alltoall"): (
        "overlapped_shared_experts_need_the_alltoall_dispatcher"
    ),
    ("moe_token_drop_policy", "only used when moe_expert_capacity_factor is set"): (
        "a_drop_policy_needs_limited_experts"
    ),
    **{
        (name, "train_type=full"): f"{name}_belongs_to_full_training"
        for name in (
            "freeze_parameters",
            "freeze_parameters_regex",
            "freeze_parameters_ratio",
            "trainable_parameters",
            "trainable_parameters_regex",
        )
    },
    ("freeze_llm", "multimodal_model"): "a_text_model_is_not_frozen_whole",
    **{
        (name, "multimodal_model"): f"{name}_belongs_to_images"
        for name in ("freeze_vit", "freeze_aligner", "vit_gradient_checkpointing")
    },
    ("freeze_parameters_ratio", "pipeline_model_parallel_size>1"): "a_share_is_frozen_only_without_a_pipeline",
    **{
        (name, "train_type=lora"): f"{name}_belongs_to_lora"
        for name in (
            "adapter_load",
            "target_modules",
            "target_regex",
            "modules_to_save",
            "lora_rank",
            "lora_alpha",
            "lora_dropout",
            "lora_bias",
            "use_rslora",
        )
    },
    ("target_regex", "target_modules"): "modules_are_chosen_in_one_way",
    (
        "ref_load",
        "only built for train_type=full; LoRA uses the base weights with adapters disabled",
    ): "lora_needs_no_second_reference_model",
    ("ref_adapter_load", "train_type=lora"): "a_reference_adapter_belongs_to_lora",
    ("padding_free", "packing=true forces true"): "packed_rows_are_not_padded",
    ("mlp_padding_free", "padding_free=false"): "pad_tokens_are_dropped_only_where_there_are_any",
    ("mlp_padding_free", "conflicts sequence_parallel=true"): "sequence_parallel_excludes_dropping_pad_tokens",
    ("packing", "conflicts lazy_tokenize=true"): "packing_knows_all_lengths",
    ("packing", "forces padding_free=true"): "packed_rows_are_not_padded",
    ("packing_length", "only used when packing=true"): "a_row_length_belongs_to_packing",
    ("streaming", "train_iters"): "a_stream_has_a_given_length",
    ("streaming", "lazy_tokenize=true"): "a_stream_is_not_tokenized_lazily",
    ("streaming", "cached_dataset"): "a_stream_is_not_cached",
    ("streaming", "forces dataloader_type=external and num_workers=1"): "a_stream_gives_its_own_order",
    ("streaming", "explicit eval_iters needed with a validation set"): "a_streamed_evaluation_has_a_given_length",
    ("lazy_tokenize", "cached_dataset"): "cached_data_is_tokenized_already",
    ("lazy_tokenize", "conflicts packing=true"): "packing_knows_all_lengths",
    ("lazy_tokenize", "conflicts streaming=true"): "a_stream_is_not_tokenized_lazily",
    ("cached_dataset", "lazy_tokenize=true"): "cached_data_is_tokenized_already",
    ("cached_dataset", "streaming=true"): "a_stream_is_not_cached",
    ("model", "ValueError when neither given nor found in args.json"): "the_model_is_given",
    ("dataset", "dataset or cached_dataset must be non-empty"): "training_data_is_given",
    ("split_dataset_ratio", "forced to 0 with val_dataset or streaming"): "validation_data_is_given_once",
    ("interleave_prob", "one value per dataset"): "each_data_set_has_a_probability",
    ("stopping_strategy", "interleave_prob"): "mixing_stops_only_when_it_happens",
    ("shuffle_buffer_size", "streaming=true"): "a_shuffle_buffer_belongs_to_a_stream",
    ("shuffle_buffer_size", "dataset_shuffle=true"): "a_shuffle_buffer_shuffles",
    ("use_chat_template", "megatron pt forces false"): "pre_training_uses_plain_text",
    ("loss_scale", "megatron pt forces all"): "pre_training_trains_every_token",
    ("to_hf", "mcore_model or mcore_adapters"): "a_hugging_face_export_has_a_source",
    ("to_cached_dataset", "packing=true"): "cached_data_is_packed_later",
    ("to_cached_dataset", "streaming=true"): "a_stream_is_not_stored",
}

REFUSED = "the argument or value is refused"
ELSEWHERE_IN_TASKS = "the argument applies to task rlhf only, whose only algorithm is dpo"
DATA = "behavior of the data pipeline, not a rule between arguments"
CHECKPOINT = "behavior of checkpoints and conversion, not a rule between arguments"
AT_RUN_TIME = "depends on the machine or the disk, checked when the run starts"
NOT_OURS = "a limit of the reference trainer that ours does not have"

# (argument, statement) -> why no rule.
UNRULED = {
    ("micro_batch_size", ">=1"): "the range of the argument",
    ("deterministic_mode", "needs env NCCL_ALGO in {Tree,Ring,CollnetDirect,CollnetChain,^NVLS}"): (
        "the trainer sets the environment itself"
    ),
    ("attention_backend", "padding_free (thd) needs a backend that supports packed sequences"): AT_RUN_TIME,
    ("use_precision_aware_optimizer", "needs Transformer Engine >= 2.1"): AT_RUN_TIME,
    ("seq_length", "seq_length % (2*context_parallel_size) == 0 when context_parallel_size>1"): NOT_OURS,
    ("wandb_exp_name", "must be non-empty when wandb_project is set (Megatron raises)"): NOT_OURS,
    ("load", "directory must exist"): AT_RUN_TIME,
    ("load", "required unless no_initialization=false"): "weights also come from model, in Hugging Face form",
    ("no_initialization", "must be false when load is unset"): "weights also come from model, in Hugging Face form",
    ("finetune", "streaming=true: consumed data is not skipped on resume"): DATA,
    ("context_parallel_size", "conflicts cached_dataset (3.8.x raises)"): NOT_OURS,
    ("cached_dataset", "conflicts context_parallel_size>1"): NOT_OURS,
    ("distributed_timeout_minutes", "set to ddp_timeout // 60"): REFUSED,
    ("ddp_timeout", "distributed_timeout_minutes = ddp_timeout // 60"): REFUSED,
    ("fp8_format", "collator pads rows to max(8*(tp*cp padding),16) tokens"): "data/collate.row_multiple",
    ("apply_query_key_layer_scaling", "sets env NVTE_APPLY_QK_LAYER_SCALING=1"): REFUSED,
    ("moe_shared_expert_intermediate_size", "0 is treated as unset"): "derive.shared_expert_size",
    ("adapter_load", "load (base weights) is still needed"): "args.json of the adapter names the base weights",
    **{
        (name, "rlhf_type=dpo"): ELSEWHERE_IN_TASKS
        for name in (
            "ref_load",
            "ref_adapter_load",
            "beta",
            "rpo_alpha",
            "reference_free",
            "label_smoothing",
            "f_divergence_type",
            "loss_type",
        )
    },
    ("add_version", "form v{N}-{YYYYmmdd-HHMMSS}, N = highest existing + 1"): CHECKPOINT,
    ("enable_channel_loss", "dataset field channel"): DATA,
    ("enable_channel_loss", "v3.8.3: padding_free only"): NOT_OURS,
    ("loss_scale", "base.loss_scale"): "a default of task rlhf",
    ("calculate_per_token_loss", "training.calculate_per_token_loss"): "a default of task rlhf",
    (
        "torch_dtype",
        "float32 or float16 -> fp16 mode, bfloat16 -> bf16 mode unless fp16/bf16 are given",
    ): "derive.fp16_bf16, which trains float32 weights in float32",
    (
        "new_special_tokens",
        "padded_vocab_size = ceil(len(tokenizer)/128)*128 when the config vocabulary is smaller;"
        " all-zero rows get init_method values",
    ): "behavior of the model's construction",
    ("dataset", "an existing path wins over the # and : syntax"): DATA,
    ("dataset", "dataset_shuffle=false or streaming=true takes the first N in order"): DATA,
    ("split_dataset_ratio", "val size = max(int(min(len,N)*ratio),1) per dataset"): DATA,
    ("split_dataset_ratio", "the split is written to {save}/val_dataset.jsonl"): DATA,
    ("dataset_num_proc", "ignored for streaming (except as packing worker count)"): DATA,
    ("max_length", "checked after padding to a multiple of 2*context_parallel_size"): DATA,
    ("max_length", "DPO checks chosen and rejected separately"): DATA,
    (
        "truncation_strategy",
        "left/right keep placeholder tokens of images; still discouraged for multimodal",
    ): DATA,
    ("template_backend", "jinja is inference-only"): REFUSED,
    ("to_mcore", "writes iter_0000001 and latest_checkpointed_iteration.txt=1 plus args.json"): CHECKPOINT,
}
