"""Names of other versions and trainers, and misspelt ones."""

import pytest

from megatron_trainjob.args.names import ALIASES, Alias, explain_unknown, find_alias, nearest
from megatron_trainjob.args.other_programs import ELSEWHERE, FIELDS_OF_MEGATRON, WITHOUT_COUNTERPART
from megatron_trainjob.args.tree import ARGUMENTS


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("lrr", "lr"),
        ("tensor_parallel_size", "tensor_model_parallel_size"),
        ("micro_batchsize", "micro_batch_size"),
        ("lora-rank", "lora_rank"),
        ("LR", "lr"),
        ("learning_rate", "lr"),
        ("gradient_accumulation_steps", "global_batch_size"),
        ("max_lenght", "max_length"),
        ("recompute_granulartiy", "recompute_granularity"),
        ("save_step", "save_steps"),
        ("xyzzy", None),
    ],
)
def test_nearest_name_is_the_one_that_was_meant(written, meant):
    assert nearest(written, "sft") == meant


def test_nearest_name_is_one_of_the_task():
    assert nearest("rpo_alfa", "rlhf") == "rpo_alpha"
    assert nearest("rpo_alfa", "sft") != "rpo_alpha"


def test_a_name_is_an_alias_only_where_it_is_not_an_argument():
    assert find_alias("output_dir", "sft") == Alias(canonical="save", inverted=False)
    assert find_alias("output_dir", "export") is None


def test_aliases_and_names_of_other_trainers_lead_to_arguments():
    assert {alias.canonical for alias in ALIASES.values()} <= set(ARGUMENTS)
    assert set(ELSEWHERE.values()) <= set(ARGUMENTS)
    assert not set(ELSEWHERE) & set(ARGUMENTS)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("cpu_offloading", "moves activations to host memory"),
        ("cpu_offloading_num_layers", "moves activations to host memory"),
        ("cpu-offloading-activations", "moves activations to host memory"),
        ("fine_grained_activation_offloading", "moves activations to host memory"),
        ("use_megatron_fsdp", "shards weights over data-parallel ranks"),
        ("use_torch_fsdp2", "shards weights over data-parallel ranks"),
        ("deepspeed", "shards weights over data-parallel ranks"),
        ("data_path", "is about Megatron-LM's own data files"),
        ("split", "is about Megatron-LM's own data files"),
        ("tokenizer_type", "is about Megatron-LM's own data files"),
        ("tokenizer_model", "is about Megatron-LM's own data files"),
        ("exit_duration_in_mins", "is decided by the job"),
        ("exit_interval", "is decided by the job"),
        ("external_cuda_graph", "is about CUDA graphs"),
        ("profile_step_end", "is about a profiler"),
        ("window_size", "is decided by the model's config.json"),
        ("softmax_type", "is decided by the model's config.json"),
        ("add_bias_linear", "is decided by the model's config.json"),
        ("moe_router_num_groups", "is decided by the model's config.json"),
        ("rampup_batch_size", "changes the batch size during training"),
        ("distribute_saved_activations", "is a field of Megatron-Core's configuration"),
        ("moe_pad_expert_input_to_capacity", "is a field of Megatron-Core's configuration"),
        ("moe_router_force_load_balancing", "is a field of Megatron-Core's configuration"),
        ("fp8_wgrad", "is a field of Megatron-Core's configuration"),
        ("overlap_p2p_comm", "is decided by the number of stages"),
        ("init_method_std", "is decided by initializer_range"),
        ("moe_apply_probs_on_input", "is decided by the model's config.json"),
        ("start_weight_decay", "changes the weight decay during training"),
        ("save_retain_interval", "did you mean save_total_limit?"),
        ("fp8_interval", "is a field of Megatron-Core's configuration"),
        ("qk_clip_alpha", "is a field of Megatron-Core's configuration"),
        ("initial_loss_scale", "is a field of Megatron-Core's configuration"),
        ("lr_decay_samples", "did you mean lr_decay_iters?"),
        ("train_samples", "did you mean train_iters?"),
        ("recompute_activations", "did you mean recompute_granularity?"),
        ("num_moe_experts", "did you mean num_experts?"),
        ("layernorm_epsilon", "did you mean norm_epsilon?"),
        ("cpu_offload", "did you mean optimizer_cpu_offload?"),
        ("train_dataset", "did you mean dataset?"),
        ("prompt_template", "did you mean template?"),
        ("align_param_gather", "docs/arguments.md lists all of them"),
        ("ddp_bucket_size", "docs/arguments.md lists all of them"),
        ("non_persistent_save_interval", "docs/arguments.md lists all of them"),
        ("log_straggler", "docs/arguments.md lists all of them"),
        ("bos_token", "docs/arguments.md lists all of them"),
    ],
)
def test_arguments_of_other_programs_get_the_counterpart_or_the_reason_why_there_is_none(written, said):
    """Spelling leads from many of them to something else: cpu_offloading to offload_bridge, split to split_turns."""
    assert said in explain_unknown(written, "sft")


def test_what_other_programs_have_is_no_argument_here():
    assert not {*ELSEWHERE, *WITHOUT_COUNTERPART, *FIELDS_OF_MEGATRON} & {*ARGUMENTS, *ALIASES}
    assert not set(WITHOUT_COUNTERPART) & {*ELSEWHERE, *FIELDS_OF_MEGATRON}
