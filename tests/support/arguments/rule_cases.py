"""For every rule between arguments one input that it accepts and one that it rejects."""

from dataclasses import dataclass, field

from megatron_trainjob.args.rules import RULES
from megatron_trainjob.args.tree import ARGUMENTS

RM = {"rlhf_type": "rm"}
KTO = {"rlhf_type": "kto", "micro_batch_size": 2, "global_batch_size": 4}
DENSE = {
    "model_type": "llama",
    "num_hidden_layers": 12,
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 2048,
}
EXPERTS = {
    **DENSE,
    "model_type": "qwen3_moe",
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
}
LATENT = {
    **DENSE,
    "model_type": "deepseek_v3",
    "num_key_value_heads": 8,
    "first_k_dense_replace": 12,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
}


_UNIFORM = {"recompute_granularity": "full", "recompute_method": "uniform"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """Arguments that keep and that break one rule, and what else the rule looks at."""

    rule: str
    good: dict
    bad: dict
    task: str = "sft"
    world_size: int | None = None
    config: dict | None = None
    bad_config: dict | None = None
    given: tuple = field(default=())


def _other(name: str) -> object:
    """A value that differs from the argument's default."""
    argument = ARGUMENTS[name]
    if argument.choices:
        other = next(choice for choice in argument.choices if choice != argument.default)
        return (other,) if argument.is_list else other
    if argument.type == "bool":
        return not argument.default
    if argument.type in ("int", "float"):
        bound = argument.lt if argument.lt is not None else argument.le
        larger = (argument.default or 0) + 1
        return larger if bound is None or larger < bound else bound / 2
    return ("x",) if argument.is_list else "x"


def _needs(rule: str, name: str, **switch: object) -> Case:
    value = _other(name)
    return Case(rule=rule, good={name: value, **switch}, bad={name: value})


_SEES_IMAGES = {"model_type": "qwen2_5_vl"}
_TEXT_ALONE = {"model_type": "llama"}

CASES = [
    # dropout
    Case(
        rule="dropout_of_the_model_is_said",
        good={"attention_dropout": 0.0},
        bad={},
        config={**DENSE, "attention_dropout": 0.1},
    ),
    Case(
        rule="jitter_of_the_router_is_not_applied",
        good={},
        bad={},
        config={**DENSE, "model_type": "mixtral"},
        bad_config={**DENSE, "model_type": "mixtral", "router_jitter_noise": 0.1},
    ),
    # images
    *(
        Case(
            rule=f"{name}_needs_vision",
            good={name: _other(name)},
            bad={name: _other(name)},
            config={**DENSE, "vision_config": {}},
            bad_config=DENSE,
        )
        for name in ("max_pixels", "min_pixels", "norm_bbox", "image_root", "image_cache_gib")
    ),
    Case(
        rule="model_kwargs_needs_vision",
        good={"model_kwargs": {"fps": 1}},
        bad={"model_kwargs": {"fps": 1}},
        config={**DENSE, "vision_config": {}},
        bad_config=DENSE,
    ),
    Case(
        rule="settings_of_models_are_known",
        good={"model_kwargs": {"FPS_MAX_FRAMES": "12"}},
        bad={"model_kwargs": {"fps_most_frames": 12}},
    ),
    Case(
        rule="pixels_are_given_once",
        good={"model_kwargs": {"max_pixels": 4}, "max_pixels": 4},
        bad={"model_kwargs": {"max_pixels": 5}, "max_pixels": 4},
    ),
    Case(
        rule="the_fewest_pixels_are_below_the_most",
        good={"min_pixels": 4, "max_pixels": 4},
        bad={"min_pixels": 5, "max_pixels": 4},
    ),
    # quantized exports
    Case(
        rule="fp8_has_eight_bits",
        good={"quant_method": "fp8", "quant_bits": 8},
        bad={"quant_method": "fp8", "quant_bits": 4},
        task="export",
    ),
    Case(
        rule="bits_belong_to_a_quantization",
        good={"quant_method": "fp8", "quant_bits": 8},
        bad={"quant_bits": 8},
        task="export",
    ),
    Case(
        rule="quantized_weights_are_a_hugging_face_model",
        good={"quant_method": "fp8", "to_hf": True},
        bad={"quant_method": "fp8", "to_mcore": True},
        task="export",
    ),
    *(
        Case(rule=rule, good={"quant_method": "fp8"}, bad={"quant_method": "fp8", **other}, task="export")
        for rule, other in (
            ("quantized_weights_are_merged", {"merge_lora": False}),
            ("quantized_weights_differ_from_their_source", {"test_convert_precision": True}),
        )
    ),
    # uploads
    Case(
        rule="what_is_uploaded_was_written",
        good={"push_to_hub": True, "save_safetensors": True},
        bad={"push_to_hub": True},
    ),
    Case(
        rule="an_export_uploads_a_hugging_face_folder",
        good={"push_to_hub": True, "to_hf": True},
        bad={"push_to_hub": True, "to_mcore": True},
        task="export",
    ),
    # multi-token prediction
    Case(
        rule="predicting_layers_are_recomputed_one_by_one",
        good={"mtp_num_layers": 1, **_UNIFORM, "recompute_num_layers": 1},
        bad={"mtp_num_layers": 1, **_UNIFORM, "recompute_num_layers": 2},
    ),
    Case(
        rule="adapters_of_predicting_layers_need_a_merged_model",
        good={"mtp_num_layers": 1, "train_type": "lora", "merge_lora": True},
        bad={"mtp_num_layers": 1, "train_type": "lora"},
    ),
    _needs("a_loss_factor_needs_predicting_layers", "mtp_loss_scaling_factor", mtp_num_layers=1),
    # data
    Case(rule="the_model_is_given", good={"model": "m"}, bad={}),
    Case(rule="the_model_is_given", good={"load": "/ckpt"}, bad={"model": ""}),
    *(
        Case(rule=f"{name}_is_no_variable_of_a_shell", good={name: good}, bad={name: bad})
        for names, good, bad in (
            (("model", "load", "adapter_load", "ref_load", "ref_adapter_load"), "a$.b", "$HOME/m"),
            (("save", "tensorboard_dir", "image_root"), "a$.b", "${OUT}/m"),
            (("model", "load", "save", "tensorboard_dir"), "a~/~b", "~/m"),
            (("dataset", "cached_val_dataset"), ("~a", "b~"), ("a", "~me/x.jsonl")),
            (("custom_dataset_info",), ("a.json",), ("a.json", "$D/x.json")),
            (("dataset", "val_dataset", "cached_dataset", "cached_val_dataset"), ("a",), ("a", "${D}/x.jsonl")),
        )
        for name in names
    ),
    *(
        Case(rule=rule, good={"group_by_length": True}, bad={"group_by_length": True, **other})
        for rule, other in (
            ("the_length_of_every_sample_is_known", {"lazy_tokenize": True}),
            ("a_stream_is_not_grouped", {"streaming": True}),
            ("packed_rows_have_one_length", {"packing": True}),
            ("an_order_that_is_kept_is_not_grouped", {"dataloader_type": "single"}),
        )
    ),
    Case(
        rule="the_best_checkpoint_was_evaluated",
        good={"load_best_model_at_end": True, "val_dataset": ("v",), "save_interval": 10, "eval_interval": 5},
        bad={"load_best_model_at_end": True, "val_dataset": ("v",), "save_interval": 10, "eval_interval": 4},
    ),
    Case(
        rule="the_best_checkpoint_was_evaluated",
        good={"load_best_model_at_end": True, "val_dataset": ("v",), "save_strategy": "epoch"},
        bad={"load_best_model_at_end": True, "val_dataset": ("v",), "save_strategy": "no"},
    ),
    Case(
        rule="the_best_checkpoint_was_evaluated",
        good={"load_best_model_at_end": True, "split_dataset_ratio": 0.1},
        bad={"load_best_model_at_end": True},
    ),
    Case(
        rule="a_distance_of_checkpoints_belongs_to_steps",
        good={"save_interval": 5},
        bad={"save_interval": 5, "save_strategy": "epoch"},
        given=("save_interval",),
    ),
    Case(
        rule="a_distance_of_evaluations_belongs_to_steps",
        good={"eval_interval": 5, "save_strategy": "epoch"},
        bad={"eval_interval": 5, "eval_strategy": "epoch"},
    ),
    Case(
        rule="validation_data_is_evaluated",
        good={"val_dataset": ("v",), "save_strategy": "no", "eval_strategy": "epoch"},
        bad={"val_dataset": ("v",), "save_strategy": "no"},
    ),
    *(
        Case(
            rule=rule,
            good={**given, "save_strategy": "no", "eval_strategy": "epoch"},
            bad={**given, "save_strategy": "no"},
        )
        for rule, given in (
            ("rows_split_off_are_evaluated", {"split_dataset_ratio": 0.1}),
            ("cached_validation_data_is_evaluated", {"cached_val_dataset": ("v",)}),
        )
    ),
    *(
        Case(
            rule=f"a_stream_has_no_epoch_for_{name}",
            good={name: "steps", "streaming": True},
            bad={name: "epoch", "streaming": True},
        )
        for name in ("save_strategy", "eval_strategy")
    ),
    *(
        Case(rule=f"{name}_needs_a_pipeline", good={name: 2, "pipeline_model_parallel_size": 2}, bad={name: 2})
        for name in ("virtual_pipeline_model_parallel_size", "num_layers_per_virtual_pipeline_stage")
    ),
    Case(
        rule="pipeline_model_parallel_layout_needs_a_pipeline",
        good={"pipeline_model_parallel_layout": "Et*6|t*6L", "pipeline_model_parallel_size": 2},
        bad={"pipeline_model_parallel_layout": "Et*12L"},
    ),
    *(
        Case(
            rule="the_layout_is_one_of_these_stages",
            good={"pipeline_model_parallel_layout": "Et*5|(t|)*2,t*5,L", "pipeline_model_parallel_size": 2},
            bad={"pipeline_model_parallel_layout": bad, "pipeline_model_parallel_size": 2},
        )
        for bad in ("Ett|tt", "tt|ttL", "Ett|t|tL", "Etx|tL", "Et||tt|L", "Ett|ttmL", "Ett*99999999|L", "E|L")
    ),
    *(
        Case(
            rule="the_layout_places_every_layer",
            good={"pipeline_model_parallel_layout": "Et*7|t*5L", "pipeline_model_parallel_size": 2},
            bad={"pipeline_model_parallel_size": 2, **bad},
            config=DENSE,
        )
        for bad in (
            {"pipeline_model_parallel_layout": "Et*7|t*6L"},
            {"pipeline_model_parallel_layout": "Et*7|t*5L", "virtual_pipeline_model_parallel_size": 2},
        )
    ),
    *(
        Case(
            rule=f"a_layout_excludes_{other}",
            good={"pipeline_model_parallel_layout": "Ett|ttL"},
            bad={"pipeline_model_parallel_layout": "Ett|ttL", other: 2},
        )
        for other in (
            "num_layers_per_virtual_pipeline_stage",
            "decoder_first_pipeline_num_layers",
            "decoder_last_pipeline_num_layers",
        )
    ),
    *(
        Case(rule=f"{virtual}_excludes_{uneven}", good={virtual: 2}, bad={virtual: 2, uneven: 3})
        for virtual in ("virtual_pipeline_model_parallel_size", "num_layers_per_virtual_pipeline_stage")
        for uneven in ("decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers")
    ),
    *(
        Case(
            rule="the_layers_divide_into_virtual_stages",
            good={"pipeline_model_parallel_size": 2, name: good},
            bad={"pipeline_model_parallel_size": 2, name: bad},
            config=DENSE,
        )
        for name, good, bad in (
            ("virtual_pipeline_model_parallel_size", 3, 4),
            ("num_layers_per_virtual_pipeline_stage", 2, 4),
        )
    ),
    Case(
        rule="micro_batches_fill_the_interleaved_schedule",
        good={"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2, "global_batch_size": 4},
        bad={"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2, "global_batch_size": 3},
        world_size=2,
    ),
    _needs("a_revision_belongs_to_a_hub", "model_revision", use_hf=True),
    _needs("a_context_length_is_reached_by_scaling", "max_model_len", rope_scaling="yarn"),
    Case(
        rule="new_tokens_are_not_trained_by_adapters",
        good={"new_special_tokens": ("<a>",), "train_type": "lora", "modules_to_save": ("word_embeddings",)},
        bad={"new_special_tokens": ("<a>",), "train_type": "lora"},
    ),
    Case(
        rule="the_output_of_new_tokens_is_trained_too",
        good={"new_special_tokens": ("<a>",), "train_type": "lora", "modules_to_save": ("output_layer",)},
        bad={"new_special_tokens": ("<a>",), "train_type": "lora"},
        config={**DENSE, "tie_word_embeddings": False},
    ),
    Case(
        rule="a_stream_has_no_cached_validation",
        good={"streaming": True},
        bad={"streaming": True, "cached_val_dataset": ("c",)},
    ),
    Case(
        rule="a_late_decay_has_a_length",
        good={"lr_decay_style": "WSD", "lr_wsd_decay_iters": 5},
        bad={"lr_decay_style": "WSD"},
    ),
    *(
        _needs(f"{name}_belongs_to_a_late_decay", name, lr_decay_style="WSD")
        for name in ("lr_wsd_decay_style", "lr_wsd_decay_iters")
    ),
    Case(rule="training_data_is_given", good={"dataset": ("d",)}, bad={}),
    Case(rule="training_data_is_given", good={"cached_dataset": ("d",)}, bad={"val_dataset": ("v",)}),
    Case(
        rule="each_data_set_has_a_probability",
        good={"dataset": ("a", "b"), "interleave_prob": (0.5, 0.5)},
        bad={"dataset": ("a", "b"), "interleave_prob": (1.0,)},
    ),
    Case(
        rule="the_probabilities_of_data_sets_sum_to_one",
        good={"interleave_prob": (0.1, 0.2, 0.7)},
        bad={"interleave_prob": (0.1, 0.2)},
    ),
    Case(
        rule="an_id_of_the_hub_is_fetched_on_request",
        good={"model": "Qwen/Qwen3-8B", "use_hf": True},
        bad={"model": "Qwen/Qwen3-8B"},
    ),
    Case(
        rule="an_id_of_the_hub_is_fetched_on_request",
        good={"model": "./models/tiny"},
        bad={"model": "models/tiny"},
    ),
    Case(
        rule="the_family_of_a_name_is_trained",
        good={"model": "google/gemma-2-9b-it"},
        bad={"model": "google/gemma-4-E4B-it"},
    ),
    Case(
        rule="a_stream_has_one_worker",
        good={"streaming": True, "num_workers": 1},
        bad={"streaming": True, "num_workers": 4},
        given=("num_workers",),
    ),
    Case(
        rule="a_stream_gives_its_own_order",
        good={"streaming": True, "dataloader_type": "external"},
        bad={"streaming": True, "dataloader_type": "single"},
        given=("dataloader_type",),
    ),
    Case(
        rule="stored_data_is_sampled",
        good={"dataloader_type": "single"},
        bad={"dataloader_type": "external"},
    ),
    Case(
        rule="a_template_is_built_in_or_a_file",
        good={"template": "chatml"},
        bad={"template": "qwen-3"},
    ),
    *(
        Case(rule="a_model_has_its_own_template", good=good, bad={"template": "qwen3"}, config=DENSE)
        for good in (
            {},
            {"template": "llama3_2"},
            {"template": "chatml"},
            {"template": "qwen3", "use_chat_template": False},
        )
    ),
    *(
        Case(rule="a_name_of_a_template_is_that_of_the_model", good=good, bad={"template": "deepseek_r1"}, config=DENSE)
        for good in ({}, {"template": "llama3"}, {"template": "own.jinja"})
    ),
    Case(
        rule="pre_training_uses_plain_text",
        good={"use_chat_template": False},
        bad={"use_chat_template": True},
        task="pt",
    ),
    Case(
        rule="pre_training_trains_every_token",
        good={"loss_scale": "all"},
        bad={"loss_scale": "default"},
        task="pt",
    ),
    Case(
        rule="samples_fit_into_the_model",
        good={"max_length": 2048},
        bad={"max_length": 2049},
        config=DENSE,
    ),
    Case(
        rule="samples_fit_into_the_model",
        good={"max_length": 4096, "rope_scaling": "yarn", "max_model_len": 4096},
        bad={"max_length": 4096, "max_model_len": 4096},
        config=DENSE,
    ),
    Case(
        rule="packed_samples_fit_into_a_row",
        good={"packing": True, "packing_length": 4096, "max_length": 2048},
        bad={"packing": True, "packing_length": 1024, "max_length": 2048},
    ),
    Case(
        rule="the_planned_sequence_fits_into_the_model",
        good={"seq_length": 2048},
        bad={"seq_length": 2049},
        config=DENSE,
    ),
    Case(
        rule="a_sequence_has_one_length",
        good={"seq_length": 2048, "max_length": 2048},
        bad={"seq_length": 2048, "max_length": 4096},
    ),
    Case(
        rule="rotary_scaling_is_known_and_has_a_target",
        good={"rope_scaling": {"type": "linear", "factor": 2.0}},
        bad={"rope_scaling": "cubic", "max_model_len": 9},
    ),
    Case(
        rule="rotary_scaling_is_known_and_has_a_target",
        good={"rope_scaling": "yarn", "max_model_len": 8192},
        bad={"rope_scaling": "yarn"},
    ),
    Case(
        rule="a_stream_is_not_tokenized_lazily",
        good={"lazy_tokenize": True},
        bad={"streaming": True, "lazy_tokenize": True},
    ),
    Case(
        rule="a_stream_is_not_cached",
        good={"streaming": True},
        bad={"streaming": True, "cached_dataset": ("c",)},
    ),
    Case(
        rule="cached_data_is_tokenized_already",
        good={"cached_dataset": ("c",)},
        bad={"lazy_tokenize": True, "cached_dataset": ("c",)},
    ),
    Case(
        rule="packing_knows_all_lengths",
        good={"packing": True},
        bad={"packing": True, "lazy_tokenize": True},
    ),
    Case(
        rule="packed_rows_are_not_padded",
        good={"padding_free": False},
        bad={"packing": True, "padding_free": False},
    ),
    Case(
        rule="a_row_length_belongs_to_packing",
        good={"packing_length": 64, "packing": True},
        bad={"packing_length": 64},
    ),
    Case(
        rule="pad_tokens_are_dropped_only_where_there_are_any",
        good={"mlp_padding_free": True, "padding_free": False},
        bad={"mlp_padding_free": True},
    ),
    Case(
        rule="validation_data_is_given_once",
        good={"split_dataset_ratio": 0.1},
        bad={"split_dataset_ratio": 0.1, "val_dataset": ("v",)},
    ),
    Case(
        rule="only_answers_are_split",
        good={"split_turns": True},
        bad={"split_turns": True, "task_type": "seq_cls"},
    ),
    Case(
        rule="turns_of_a_conversation_are_not_held_out",
        good={"split_turns": True, "split_dataset_ratio": 0.0},
        bad={"split_turns": True, "split_dataset_ratio": 0.1},
    ),
    Case(
        rule="a_stream_is_not_split",
        good={"split_dataset_ratio": 0.1},
        bad={"split_dataset_ratio": 0.1, "streaming": True},
    ),
    Case(
        rule="mixing_stops_only_when_it_happens",
        good={"stopping_strategy": "all_exhausted", "interleave_prob": (1.0,)},
        bad={"stopping_strategy": "all_exhausted"},
    ),
    Case(
        rule="a_shuffle_buffer_belongs_to_a_stream",
        good={"shuffle_buffer_size": 9, "streaming": True},
        bad={"shuffle_buffer_size": 9},
    ),
    Case(
        rule="a_shuffle_buffer_shuffles",
        good={"shuffle_buffer_size": 9},
        bad={"shuffle_buffer_size": 9, "dataset_shuffle": False},
    ),
    Case(
        rule="only_validation_data_is_shuffled_so",
        good={"val_dataset_shuffle": True, "val_dataset": ("v",)},
        bad={"val_dataset_shuffle": True},
    ),
    # batch
    Case(rule="the_length_of_the_run_is_given", good={"train_iters": 1}, bad={}),
    Case(rule="the_length_of_the_run_is_given", good={"max_epochs": 1}, bad={"lr_decay_iters": 5}),
    Case(
        rule="a_stream_has_a_given_length",
        good={"streaming": True, "train_iters": 1},
        bad={"streaming": True, "max_epochs": 1},
    ),
    Case(
        rule="the_global_batch_consists_of_whole_micro_batches",
        good={"global_batch_size": 6, "micro_batch_size": 3},
        bad={"global_batch_size": 6, "micro_batch_size": 4},
    ),
    Case(
        rule="the_global_batch_divides_over_the_ranks",
        good={"global_batch_size": 8, "micro_batch_size": 2, "tensor_model_parallel_size": 2},
        bad={"global_batch_size": 4, "micro_batch_size": 2, "tensor_model_parallel_size": 2},
        world_size=8,
    ),
    Case(
        rule="an_evaluation_interval_needs_a_validation_set",
        good={"eval_interval": 5, "split_dataset_ratio": 0.1},
        bad={"eval_interval": 5},
    ),
    Case(
        rule="evaluation_steps_need_a_validation_set",
        good={"eval_iters": 5, "val_dataset": ("v",)},
        bad={"eval_iters": 5},
    ),
    Case(
        rule="a_streamed_evaluation_has_a_given_length",
        good={"streaming": True, "val_dataset": ("v",), "eval_iters": 3},
        bad={"streaming": True, "val_dataset": ("v",)},
    ),
    # layout
    Case(
        rule="the_ranks_divide_into_copies_of_the_model",
        good={"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2, "context_parallel_size": 2},
        bad={"tensor_model_parallel_size": 3},
        world_size=8,
    ),
    Case(
        rule="the_ranks_divide_into_copies_of_the_experts",
        good={"expert_model_parallel_size": 4, "tensor_model_parallel_size": 2},
        bad={"expert_model_parallel_size": 8, "tensor_model_parallel_size": 2},
        world_size=8,
    ),
    Case(
        rule="the_layers_divide_into_stages",
        good={"pipeline_model_parallel_size": 5, "decoder_first_pipeline_num_layers": 4},
        bad={"pipeline_model_parallel_size": 5},
        config=DENSE,
    ),
    Case(
        rule="the_layers_divide_into_stages",
        good={
            "pipeline_model_parallel_size": 2,
            "decoder_first_pipeline_num_layers": 5,
            "decoder_last_pipeline_num_layers": 7,
        },
        bad={
            "pipeline_model_parallel_size": 2,
            "decoder_first_pipeline_num_layers": 5,
            "decoder_last_pipeline_num_layers": 6,
        },
        config=DENSE,
    ),
    Case(
        rule="the_layers_divide_into_stages",
        good={"pipeline_model_parallel_size": 2, "decoder_last_pipeline_num_layers": 5},
        bad={"pipeline_model_parallel_size": 2, "decoder_last_pipeline_num_layers": 12},
        config=DENSE,
    ),
    Case(
        rule="the_attention_heads_divide_over_tensor_ranks",
        good={"tensor_model_parallel_size": 4},
        bad={"tensor_model_parallel_size": 3},
        config=DENSE,
    ),
    Case(
        rule="the_feed_forward_width_divides_over_tensor_ranks",
        good={"tensor_model_parallel_size": 4},
        bad={"tensor_model_parallel_size": 3},
        config=DENSE,
    ),
    Case(
        rule="the_key_value_heads_match_the_tensor_ranks",
        good={"tensor_model_parallel_size": 8},
        bad={"tensor_model_parallel_size": 6},
        config=DENSE,
    ),
    *(
        Case(
            rule=f"{name}_needs_a_pipeline",
            good={name: 2, "pipeline_model_parallel_size": 2},
            bad={name: 2},
        )
        for name in ("decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers")
    ),
    Case(
        rule="sequence_parallel_needs_tensor_parallel",
        good={"sequence_parallel": True, "tensor_model_parallel_size": 2},
        bad={"sequence_parallel": True},
    ),
    Case(
        rule="sequence_parallel_excludes_dropping_pad_tokens",
        good={"mlp_padding_free": True},
        bad={"mlp_padding_free": True, "sequence_parallel": True},
    ),
    Case(
        rule="context_parallel_excludes_dropping_pad_tokens",
        good={"mlp_padding_free": True},
        bad={"mlp_padding_free": True, "context_parallel_size": 2},
    ),
    _needs("tensor_overlap_needs_sequence_parallel", "tp_comm_overlap", sequence_parallel=True),
    Case(
        rule="parameter_overlap_needs_the_distributed_optimizer",
        good={"overlap_param_gather": True},
        bad={"overlap_param_gather": True, "use_distributed_optimizer": False},
    ),
    _needs(
        "parameter_overlap_needs_gradient_overlap",
        "overlap_param_gather",
        overlap_grad_reduce=True,
    ),
    Case(
        rule="a_missing_checkpoint_is_tolerated_only_when_one_is_named",
        good={"exit_on_missing_checkpoint": False, "load": "/ckpt"},
        bad={"exit_on_missing_checkpoint": False},
    ),
    # experts
    *(
        Case(
            rule=f"{name}_needs_experts",
            good={name: _other(name)},
            bad={name: _other(name)},
            config=EXPERTS,
            bad_config=DENSE,
        )
        for name, argument in ARGUMENTS.items()
        if argument.group == "moe" and name != "num_experts"
    ),
    *(
        Case(
            rule=f"{name}_needs_latent_attention",
            good={name: 8},
            bad={name: 8},
            config=LATENT,
            bad_config=DENSE,
        )
        for name in ("q_lora_rank", "kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim")
    ),
    Case(
        rule="the_experts_divide_over_expert_ranks",
        good={"expert_model_parallel_size": 4},
        bad={"expert_model_parallel_size": 3},
        config=EXPERTS,
    ),
    Case(
        rule="the_expert_width_divides_over_its_tensor_ranks",
        good={"expert_tensor_parallel_size": 4},
        bad={"expert_tensor_parallel_size": 3},
        config=EXPERTS,
    ),
    Case(
        rule="tensor_parallel_experts_need_sequence_parallel",
        good={"tensor_model_parallel_size": 2, "sequence_parallel": True},
        bad={"tensor_model_parallel_size": 2},
        config=EXPERTS,
    ),
    Case(
        rule="tensor_parallel_latent_attention_needs_sequence_parallel",
        good={"tensor_model_parallel_size": 2, "sequence_parallel": True},
        bad={"tensor_model_parallel_size": 2},
        config=LATENT,
    ),
    Case(
        rule="a_token_goes_to_at_most_all_experts",
        good={"moe_router_topk": 8},
        bad={"moe_router_topk": 9},
        config=EXPERTS,
    ),
    Case(
        rule="a_single_expert_is_chosen_after_the_softmax",
        good={"moe_router_topk": 1, "moe_router_pre_softmax": True},
        bad={"moe_router_topk": 1},
        config=EXPERTS,
    ),
    Case(
        rule="a_single_expert_is_chosen_after_the_softmax",
        good={"moe_router_topk": 1, "moe_router_score_function": "sigmoid"},
        bad={"moe_router_topk": 1, "moe_router_pre_softmax": False},
        config=EXPERTS,
    ),
    Case(
        rule="an_expert_bias_needs_sigmoid_scores",
        good={"moe_router_enable_expert_bias": True, "moe_router_score_function": "sigmoid"},
        bad={"moe_router_enable_expert_bias": True},
        config=EXPERTS,
    ),
    Case(
        rule="a_bias_update_rate_needs_an_expert_bias",
        good={"moe_router_bias_update_rate": 0.1, "moe_router_score_function": "sigmoid"},
        bad={"moe_router_bias_update_rate": 0.1},
        config=EXPERTS,
    ),
    Case(
        rule="overlapped_shared_experts_exist",
        good={"moe_shared_expert_overlap": True, "moe_shared_expert_intermediate_size": 16},
        bad={"moe_shared_expert_overlap": True},
        config=EXPERTS,
    ),
    Case(
        rule="spread_experts_are_not_trained_in_fp16",
        good={"expert_model_parallel_size": 2, "bf16": True},
        bad={"expert_model_parallel_size": 2, "fp16": True},
    ),
    Case(
        rule="grouped_experts_are_not_trained_in_fp16",
        good={"moe_grouped_gemm": True, "bf16": True},
        bad={"moe_grouped_gemm": True, "fp16": True},
    ),
    Case(
        rule="deepep_needs_the_flex_dispatcher",
        good={"moe_enable_deepep": True, "moe_token_dispatcher_type": "flex"},
        bad={"moe_enable_deepep": True},
    ),
    Case(
        rule="overlapped_shared_experts_need_the_alltoall_dispatcher",
        good={"moe_shared_expert_overlap": True},
        bad={"moe_shared_expert_overlap": True, "moe_token_dispatcher_type": "allgather"},
    ),
    Case(
        rule="spread_experts_do_not_gather_all_tokens",
        good={"expert_model_parallel_size": 2, "moe_token_dispatcher_type": "alltoall"},
        bad={"expert_model_parallel_size": 2, "moe_token_dispatcher_type": "allgather"},
    ),
    Case(
        rule="limited_experts_are_not_balanced_by_sinkhorn",
        good={"moe_expert_capacity_factor": 1.0, "moe_router_load_balancing_type": "aux_loss"},
        bad={"moe_expert_capacity_factor": 1.0, "moe_router_load_balancing_type": "sinkhorn"},
    ),
    Case(
        rule="a_balancing_loss_is_computed_by_its_own_types",
        good={"moe_aux_loss_coeff": 0.1, "moe_router_load_balancing_type": "seq_aux_loss"},
        bad={"moe_aux_loss_coeff": 0.1, "moe_router_load_balancing_type": "sinkhorn"},
    ),
    Case(
        rule="a_balancing_loss_needs_a_weight",
        good={"moe_router_load_balancing_type": "seq_aux_loss", "moe_aux_loss_coeff": 0.1},
        bad={"moe_router_load_balancing_type": "aux_loss"},
    ),
    Case(
        rule="a_drop_policy_needs_limited_experts",
        good={"moe_token_drop_policy": "position", "moe_expert_capacity_factor": 1.0},
        bad={"moe_token_drop_policy": "position"},
    ),
    # optimizer
    Case(
        rule="the_warmup_has_one_length",
        good={"lr_warmup_fraction": 0.1},
        bad={"lr_warmup_fraction": 0.1, "lr_warmup_iters": 5},
    ),
    Case(
        rule="a_start_of_the_warmup_has_a_warmup",
        good={"lr_warmup_init": 1e-6, "lr_warmup_iters": 2},
        bad={"lr_warmup_init": 1e-6},
    ),
    Case(rule="the_warmup_rises", good={"lr_warmup_init": 1e-6}, bad={"lr_warmup_init": 1e-3}),
    Case(rule="the_learning_rate_falls", good={"lr": 1e-3, "min_lr": 1e-3}, bad={"lr": 1e-3, "min_lr": 2e-3}),
    Case(
        rule="the_learning_rate_falls",
        good={"min_lr": 5e-5, "train_type": "lora"},
        bad={"min_lr": 5e-5},
    ),
    Case(
        rule="the_warmup_is_shorter_than_the_decay",
        good={"lr_warmup_iters": 9, "train_iters": 10},
        bad={"lr_warmup_iters": 10, "train_iters": 10},
    ),
    Case(
        rule="the_warmup_is_shorter_than_the_decay",
        good={"lr_warmup_iters": 9, "max_epochs": 1},
        bad={"lr_warmup_iters": 9, "lr_decay_iters": 5, "train_iters": 10},
    ),
    Case(
        rule="the_late_decay_begins_after_the_warmup",
        good={"lr_decay_style": "WSD", "lr_wsd_decay_iters": 3, "lr_warmup_fraction": 0.7, "train_iters": 10},
        bad={"lr_decay_style": "WSD", "lr_wsd_decay_iters": 4, "lr_warmup_fraction": 0.7, "train_iters": 10},
    ),
    Case(
        rule="the_late_decay_begins_after_the_warmup",
        good={"lr_decay_style": "WSD", "lr_wsd_decay_iters": 11, "max_epochs": 1},
        bad={"lr_decay_style": "WSD", "lr_wsd_decay_iters": 6, "lr_decay_iters": 5, "train_iters": 10},
    ),
    Case(
        rule="the_warmup_leaves_something_to_decay",
        good={"lr_warmup_fraction": 0.99},
        bad={"lr_warmup_fraction": 1.0},
    ),
    Case(
        rule="momentum_belongs_to_sgd",
        good={"sgd_momentum": 0.5, "optimizer": "sgd"},
        bad={"sgd_momentum": 0.5},
    ),
    *(
        Case(
            rule=f"{rule}_belongs_to_adam",
            good={name: 0.5},
            bad={name: 0.5, "optimizer": "sgd"},
        )
        for rule, name in (("first_beta", "adam_beta1"), ("second_beta", "adam_beta2"), ("epsilon", "adam_eps"))
    ),
    *(
        Case(rule=f"{name}_belongs_to_muon", good={name: _other(name), "optimizer": "muon"}, bad={name: _other(name)})
        for name in (
            "muon_momentum",
            "muon_split_qkv",
            "muon_use_nesterov",
            "muon_scale_mode",
            "muon_fp32_matmul_prec",
            "muon_num_ns_steps",
            "muon_tp_mode",
            "muon_extra_scale_factor",
        )
    ),
    *(
        Case(
            rule="the_other_rate_has_something_to_train",
            good={"decoupled_lr": 1e-4, "train_type": "lora", "modules_to_save": (saved,)},
            bad={"decoupled_lr": 1e-4, "train_type": "lora", "modules_to_save": ("router",)},
        )
        for saved in ("word_embeddings", "output_layer", "embedding.word_embeddings")
    ),
    Case(
        rule="the_other_rate_has_something_to_train",
        good={"decoupled_lr": 1e-4, "task_type": "seq_cls"},
        bad={"decoupled_lr": 1e-4, "task_type": "seq_cls", "train_type": "lora", "modules_to_save": ("output_layer",)},
    ),
    Case(
        rule="a_tensor_parallel_mode_needs_ranks",
        good={"muon_tp_mode": "duplicated"},  # muon_tp_mode_belongs_to_muon says it
        bad={"muon_tp_mode": "duplicated", "optimizer": "dist_muon"},
    ),
    Case(
        rule="a_tensor_parallel_mode_needs_ranks",
        good={"muon_tp_mode": "duplicated", "optimizer": "muon", "tensor_model_parallel_size": 2},
        bad={"muon_tp_mode": "duplicated", "optimizer": "muon"},
    ),
    *(
        Case(rule=f"{name}_belongs_to_lion", good={name: 0.5, "optimizer": "lion"}, bad={name: 0.5})
        for name in ("lion_beta1", "lion_beta2")
    ),
    Case(
        rule="dist_muon_is_always_spread",
        good={"optimizer": "dist_muon"},
        bad={"optimizer": "dist_muon", "use_distributed_optimizer": False},
    ),
    Case(
        rule="a_floor_of_the_other_rate_needs_that_rate",
        good={"decoupled_min_lr": 1e-6, "decoupled_lr": 1e-4},
        bad={"decoupled_min_lr": 1e-6},
    ),
    Case(
        rule="the_other_learning_rate_falls",
        good={"decoupled_min_lr": 1e-6, "decoupled_lr": 1e-4},
        bad={"decoupled_min_lr": 1e-3, "decoupled_lr": 1e-4},
    ),
    Case(
        rule="a_matrix_optimizer_has_no_loss_scale",
        good={"optimizer": "muon"},
        bad={"optimizer": "muon", "fp16": True},
        config={},
    ),
    Case(
        rule="parameter_overlap_is_of_adam",
        good={"overlap_param_gather": True, "overlap_grad_reduce": True},
        bad={"overlap_param_gather": True, "overlap_grad_reduce": True, "optimizer": "muon"},
    ),
    Case(
        rule="an_offload_fraction_needs_offload",
        good={
            "optimizer_offload_fraction": 0.5,
            "optimizer_cpu_offload": True,
            "use_precision_aware_optimizer": True,
        },
        bad={"optimizer_offload_fraction": 0.5},
    ),
    Case(
        rule="the_precision_aware_optimizer_is_adam",
        good={"use_precision_aware_optimizer": True},
        bad={"use_precision_aware_optimizer": True, "optimizer": "sgd"},
    ),
    Case(
        rule="the_precision_aware_optimizer_is_distributed",
        good={"use_precision_aware_optimizer": True},
        bad={"use_precision_aware_optimizer": True, "use_distributed_optimizer": False},
    ),
    *(
        _needs(
            f"{name}_belongs_to_the_precision_aware_optimizer",
            name,
            use_precision_aware_optimizer=True,
        )
        for name in ("main_grads_dtype", "main_params_dtype", "exp_avg_dtype", "exp_avg_sq_dtype")
    ),
    Case(
        rule="an_offloaded_optimizer_is_precision_aware",
        good={"optimizer_cpu_offload": True, "use_precision_aware_optimizer": True},
        bad={"optimizer_cpu_offload": True},
    ),
    *(
        Case(
            rule=f"an_offloaded_optimizer_ignores_{name}",
            good={name: _other(name), "use_precision_aware_optimizer": True},
            bad={name: _other(name), "use_precision_aware_optimizer": True, "optimizer_cpu_offload": True},
        )
        for name in ("main_params_dtype", "exp_avg_dtype", "exp_avg_sq_dtype")
    ),
    # precision
    Case(rule="one_16_bit_type", good={"fp16": True, "bf16": False}, bad={"fp16": True, "bf16": True}),
    Case(
        rule="query_key_scaling_has_its_softmax_in_fp32",
        good={"apply_query_key_layer_scaling": True},
        bad={"apply_query_key_layer_scaling": True, "attention_softmax_in_fp32": False},
    ),
    *(
        _needs(f"{name}_belongs_to_fp8", name, fp8_format="hybrid")
        for name in ("fp8_recipe", "fp8_amax_history_len", "fp8_amax_compute_algo", "fp8_param_gather")
    ),
    *(
        Case(
            rule=f"{name}_belongs_to_delayed_scaling",
            good={name: _other(name)},
            bad={name: _other(name), "fp8_recipe": "blockwise"},
        )
        for name in ("fp8_amax_history_len", "fp8_amax_compute_algo")
    ),
    # kernels
    *(
        Case(
            rule=f"{name}_needs_transformer_engine",
            good={name: True},
            bad={name: True, "transformer_impl": "local"},
        )
        for name in ("tp_comm_overlap", "moe_grouped_gemm")
    ),
    Case(
        rule="fp8_needs_transformer_engine",
        good={"fp8_format": "hybrid"},
        bad={"fp8_format": "hybrid", "transformer_impl": "local"},
    ),
    Case(
        rule="deterministic_training_has_no_fused_cross_entropy",
        good={"deterministic_mode": True},
        bad={"deterministic_mode": True, "cross_entropy_loss_fusion": True},
    ),
    _needs(
        "a_cross_entropy_kernel_is_chosen_only_when_fused",
        "cross_entropy_fusion_impl",
        cross_entropy_loss_fusion=True,
    ),
    Case(
        rule="the_local_attention_backend_needs_local_layers",
        good={"attention_backend": "local", "transformer_impl": "local"},
        bad={"attention_backend": "local"},
    ),
    _needs("collections_have_an_interval_only_by_hand", "manual_gc_interval", manual_gc=True),
    # recompute
    Case(
        rule="a_recompute_method_belongs_to_full_recomputation",
        good={"recompute_method": "block", "recompute_granularity": "full"},
        bad={"recompute_method": "block"},
    ),
    Case(
        rule="recomputed_layers_belong_to_full_recomputation",
        good={"recompute_num_layers": 1, "recompute_granularity": "full"},
        bad={"recompute_num_layers": 1},
    ),
    Case(
        rule="full_recomputation_has_a_method",
        good={"recompute_granularity": "full", "recompute_method": "uniform"},
        bad={"recompute_granularity": "full"},
    ),
    Case(
        rule="full_recomputation_has_a_number_of_layers",
        good={"recompute_granularity": "full", "recompute_num_layers": 1},
        bad={"recompute_granularity": "full"},
    ),
    Case(
        rule="recomputed_modules_belong_to_selective_recomputation",
        good={"recompute_modules": ("mlp",)},
        bad={"recompute_modules": ("mlp",), "recompute_granularity": "none"},
    ),
    Case(
        rule="recomputing_the_expert_activation_needs_grouped_experts",
        good={"recompute_modules": ("moe_act",), "moe_grouped_gemm": True},
        bad={"recompute_modules": ("moe_act",)},
    ),
    Case(
        rule="recomputing_the_latent_projection_needs_latent_attention",
        good={"recompute_modules": ("mla_up_proj",)},
        bad={"recompute_modules": ("mla_up_proj",)},
        config=LATENT,
        bad_config=DENSE,
    ),
    *(
        Case(
            rule="recomputed_blocks_exist",
            good={"recompute_modules": good},
            bad={"recompute_modules": bad},
            config=good_config,
            bad_config=bad_config,
        )
        for good, bad, good_config, bad_config in (
            (("moe",), ("moe",), EXPERTS, DENSE),
            (("mlp",), ("mlp",), DENSE, EXPERTS),
            (("mlp",), ("mlp",), {**EXPERTS, "mlp_only_layers": [0]}, EXPERTS),
        )
    ),
    *(
        Case(
            rule="tools_are_rendered_by_the_models_own_template",
            good={"agent_template": "llama3"},
            bad=bad,
            config=DENSE,
        )
        for bad in (
            {"agent_template": "glm4_5"},
            {"agent_template": "llama4"},
            {"agent_template": "llama3", "template": "own.jinja"},
            {"agent_template": "llama3", "template": "chatml"},
        )
    ),
    *(
        Case(rule="the_words_about_tools_are_our_own", good={"agent_template": "hermes"}, bad={"agent_template": name})
        for name in ("react_en", "toolbench", "qwen_zh_parallel")
    ),
    Case(
        rule="delayed_fp8_scaling_recomputes_no_outputs",
        good={"recompute_modules": ("layernorm",), "fp8_format": "e4m3", "fp8_recipe": "blockwise"},
        bad={"recompute_modules": ("layernorm",), "fp8_format": "e4m3"},
    ),
    Case(
        rule="recomputed_layers_fit_into_each_stage",
        good={"recompute_num_layers": 6, "recompute_granularity": "full", "pipeline_model_parallel_size": 2},
        bad={"recompute_num_layers": 7, "recompute_granularity": "full", "pipeline_model_parallel_size": 2},
        config=DENSE,
    ),
    Case(
        rule="recomputed_layers_fit_into_each_stage",
        good={"recompute_num_layers": 4, "recompute_method": "uniform", "recompute_granularity": "full"},
        bad={"recompute_num_layers": 5, "recompute_method": "uniform", "recompute_granularity": "full"},
        config=DENSE,
    ),
    # tuner
    *(
        Case(
            rule=f"{name}_belongs_to_full_training",
            good={name: _other(name)},
            bad={name: _other(name), "train_type": "lora"},
        )
        for name, argument in ARGUMENTS.items()
        if argument.group == "tuner_full"
    ),
    *(
        _needs(f"{name}_belongs_to_lora", name, train_type="lora")
        for name, argument in ARGUMENTS.items()
        if argument.group == "tuner_lora"
    ),
    *(
        Case(rule=f"{name}_is_a_regular_expression", good={name: r"layers\.\d+"}, bad={name: "layers[("})
        for name in ("freeze_parameters_regex", "trainable_parameters_regex", "target_regex")
    ),
    Case(
        rule="a_share_is_frozen_only_without_a_pipeline",
        good={"freeze_parameters_ratio": 1.0, "pipeline_model_parallel_size": 2},
        bad={"freeze_parameters_ratio": 0.5, "pipeline_model_parallel_size": 2},
    ),
    Case(
        rule="a_text_model_is_not_frozen_whole",
        good={"freeze_llm": True, "freeze_vit": False},
        bad={"freeze_llm": True, "freeze_vit": False},
        config=_SEES_IMAGES,
        bad_config=_TEXT_ALONE,
    ),
    Case(
        rule="settings_fit_the_kind_of_model",
        good={"model_kwargs": {"max_num": 6}},
        bad={"model_kwargs": {"video_max_pixels": 4096}},
        config={"model_type": "internvl", "vision_config": {}},
    ),
    Case(
        rule="settings_fit_the_kind_of_model",
        good={"model_kwargs": {"video_max_pixels": 4096}},
        bad={"model_kwargs": {"max_num": 6}},
        config={"model_type": "qwen2_5_vl", "vision_config": {}},
    ),
    Case(
        rule="the_form_of_boxes_is_that_of_qwen",
        good={"model_kwargs": {"QWENVL_BBOX_FORMAT": "legacy"}},
        bad={"model_kwargs": {"QWENVL_BBOX_FORMAT": "new"}},
        config={"model_type": "glm4v", "vision_config": {}},
    ),
    Case(
        rule="images_are_not_numbered",
        good={"chat_template_kwargs": {"add_vision_id": False}},
        bad={"chat_template_kwargs": {"add_vision_id": True}},
        config={"vision_config": {}},
    ),
    Case(
        rule="a_part_is_trained",
        good={"freeze_llm": True, "freeze_aligner": False},
        bad={"freeze_llm": True},
    ),
    Case(
        rule="a_part_is_trained",
        good={"freeze_llm": True, "train_type": "lora", "target_modules": ("qkv",)},
        bad={"freeze_llm": True, "train_type": "lora"},
    ),
    Case(
        rule="a_frozen_language_model_has_one_stage",
        good={"freeze_llm": True, "freeze_vit": False},
        bad={"freeze_llm": True, "freeze_vit": False, "pipeline_model_parallel_size": 2},
    ),
    Case(
        rule="the_rates_of_the_parts_fall",
        good={"vit_lr": 1e-6, "freeze_vit": False, "min_lr": 1e-7},
        bad={"vit_lr": 1e-6, "freeze_vit": False, "min_lr": 1e-5, "lr": 1e-4},
    ),
    Case(
        rule="keywords_of_recomputation_are_known",
        good={"gradient_checkpointing_kwargs": {"use_reentrant": True}},
        bad={"gradient_checkpointing_kwargs": {"use_reentrent": True}},
    ),
    Case(
        rule="keywords_of_recomputation_need_it",
        good={"gradient_checkpointing_kwargs": {"use_reentrant": True}},
        bad={"gradient_checkpointing_kwargs": {"use_reentrant": True}, "vit_gradient_checkpointing": False},
    ),
    Case(
        rule="a_rate_of_the_tower_needs_it_trained",
        good={"vit_lr": 1e-6, "freeze_vit": False, "aligner_lr": 1e-6, "freeze_aligner": False},
        bad={"vit_lr": 1e-6, "aligner_lr": 1e-6, "freeze_aligner": False},
    ),
    Case(
        rule="a_rate_of_the_aligner_needs_it_trained",
        good={"vit_lr": 1e-6, "train_type": "lora_llm"},
        bad={"aligner_lr": 1e-6, "train_type": "lora"},
    ),
    *(
        Case(
            rule="a_rate_of_the_aligner_needs_it_trained",
            good={"aligner_lr": 1e-6, **named},
            bad={"aligner_lr": 1e-6, **other},
        )
        for named, other in (
            ({"trainable_parameters": ("visual.merger",)}, {"trainable_parameters": ("decoder.",)}),
            ({"trainable_parameters_regex": "merger"}, {"train_type": "lora", "target_modules": ("linear_qkv",)}),
            ({"train_type": "lora", "modules_to_save": ("merger",)}, {"train_type": "lora"}),
            ({"train_type": "lora", "target_regex": "visual.merger.*"}, {}),
        )
    ),
    Case(
        rule="the_tower_trains_beside_adapters",
        good={"train_type": "lora_llm", "freeze_vit": False},
        bad={"train_type": "lora_llm", "freeze_vit": True},
        given=("freeze_vit",),
    ),
    Case(
        rule="adapters_beside_a_tower_need_one",
        good={"train_type": "lora_llm"},
        bad={"train_type": "lora_llm"},
        config=_SEES_IMAGES,
        bad_config=_TEXT_ALONE,
    ),
    Case(
        rule="the_tower_trains_beside_adapters",
        good={"train_type": "lora_llm"},
        bad={"train_type": "lora_llm", "freeze_llm": True},
    ),
    Case(
        rule="freeze_vit_belongs_to_images",
        good={"freeze_vit": False},
        bad={"freeze_vit": False},
        config=_SEES_IMAGES,
        bad_config=_TEXT_ALONE,
    ),
    Case(
        rule="freeze_aligner_belongs_to_images",
        good={"freeze_aligner": False},
        bad={"freeze_aligner": False},
        config=_SEES_IMAGES,
        bad_config=_TEXT_ALONE,
    ),
    Case(
        rule="vit_gradient_checkpointing_belongs_to_images",
        good={"vit_gradient_checkpointing": False},
        bad={"vit_gradient_checkpointing": False},
        config=_SEES_IMAGES,
        bad_config=_TEXT_ALONE,
    ),
    Case(
        rule="gradient_checkpointing_kwargs_belongs_to_images",
        good={"gradient_checkpointing_kwargs": {"use_reentrant": False}},
        bad={"gradient_checkpointing_kwargs": {"use_reentrant": False}},
        config=_SEES_IMAGES,
        bad_config=_TEXT_ALONE,
    ),
    Case(
        rule="vit_lr_belongs_to_images",
        good={"vit_lr": 1e-6},
        bad={"vit_lr": 1e-6},
        config=_SEES_IMAGES,
        bad_config=_TEXT_ALONE,
    ),
    Case(
        rule="aligner_lr_belongs_to_images",
        good={"aligner_lr": 1e-6},
        bad={"aligner_lr": 1e-6},
        config=_SEES_IMAGES,
        bad_config=_TEXT_ALONE,
    ),
    Case(
        rule="something_is_trained",
        good={"freeze_parameters_ratio": 1.0, "trainable_parameters": ("decoder.layers.3",)},
        bad={"freeze_parameters_ratio": 1.0},
    ),
    Case(
        rule="modules_are_chosen_in_one_way",
        good={"target_regex": ".*linear_qkv"},
        bad={"target_regex": ".*linear_qkv", "target_modules": ("linear_proj",)},
    ),
    Case(
        rule="some_module_gets_an_adapter",
        good={"train_type": "lora", "target_modules": ("linear_qkv",)},
        bad={"train_type": "lora", "target_modules": ()},
    ),
    Case(
        rule="a_model_written_after_lora_has_the_adapter_in_it",
        good={"to_hf": True, "merge_lora": True, "train_type": "lora"},
        bad={"to_hf": True, "train_type": "lora"},
    ),
    Case(
        rule="sgd_state_is_not_sharded",
        good={"optimizer": "sgd", "use_distributed_optimizer": False},
        bad={"optimizer": "sgd"},
    ),
    Case(
        rule="only_an_adapter_is_merged",
        good={"merge_lora": True, "train_type": "lora"},
        bad={"merge_lora": True},
    ),
    Case(
        rule="lora_needs_no_second_reference_model",
        good={"ref_load": "/ref"},
        bad={"ref_load": "/ref", "train_type": "lora"},
        task="rlhf",
    ),
    Case(
        rule="a_reference_adapter_belongs_to_lora",
        good={"ref_adapter_load": "/ref", "train_type": "lora"},
        bad={"ref_adapter_load": "/ref"},
        task="rlhf",
    ),
    # preference
    Case(
        rule="label_smoothing_is_part_of_the_loss",
        good={"label_smoothing": 0.1, "loss_type": "robust"},
        bad={"label_smoothing": 0.1, "loss_type": "ipo"},
        task="rlhf",
    ),
    Case(
        rule="a_divergence_is_part_of_the_loss",
        good={"f_divergence_type": "js_divergence"},
        bad={"f_divergence_type": "js_divergence", "loss_type": "apo_zero"},
        task="rlhf",
    ),
    Case(
        rule="some_losses_always_have_a_reference",
        good={"reference_free": True},
        bad={"reference_free": True, "loss_type": "aot"},
        task="rlhf",
    ),
    Case(
        rule="without_a_reference_none_is_loaded",
        good={"reference_free": True},
        bad={"reference_free": True, "ref_load": "/ref"},
        task="rlhf",
    ),
    Case(
        rule="without_a_reference_no_adapter_of_it_is_loaded",
        good={"reference_free": True},
        bad={"reference_free": True, "ref_adapter_load": "/ref"},
        task="rlhf",
    ),
    Case(
        rule="a_loss_is_chosen_in_one_way",
        good={"loss_types": ("hinge", "sft")},
        bad={"loss_types": ("hinge", "sft"), "loss_type": "ipo"},
        task="rlhf",
    ),
    Case(
        rule="a_coefficient_belongs_to_the_alpha_divergence",
        good={"f_alpha_divergence_coef": 0.2, "f_divergence_type": "alpha_divergence"},
        bad={"f_alpha_divergence_coef": 0.2},
        task="rlhf",
    ),
    Case(
        rule="each_of_several_losses_has_a_weight",
        good={"loss_types": ("hinge", "sft"), "loss_weights": (1.0, 2.0)},
        bad={"loss_types": ("hinge", "sft"), "loss_weights": (1.0,)},
        task="rlhf",
    ),
    Case(
        rule="label_smoothing_is_part_of_some_loss",
        good={"loss_types": ("hinge", "robust"), "label_smoothing": 0.1},
        bad={"loss_types": ("hinge", "sft"), "label_smoothing": 0.1},
        task="rlhf",
    ),
    Case(
        rule="a_divergence_is_part_of_every_loss",
        good={"loss_types": ("hinge", "sft"), "f_divergence_type": "forward_kl"},
        bad={"loss_types": ("hinge", "bco_pair"), "f_divergence_type": "forward_kl"},
        task="rlhf",
    ),
    Case(
        rule="some_of_several_losses_always_have_a_reference",
        good={"loss_types": ("hinge", "sft"), "reference_free": True},
        bad={"loss_types": ("hinge", "bco_pair"), "reference_free": True},
        task="rlhf",
    ),
    Case(
        rule="a_temperature_is_discopops",
        good={"discopop_tau": 0.1, "loss_type": "discopop"},
        bad={"discopop_tau": 0.1},
        task="rlhf",
    ),
    Case(
        rule="preference_training_starts_from_a_trained_model",
        good={"no_initialization": False, "load": "/weights"},
        bad={"no_initialization": False},
        task="rlhf",
    ),
    Case(
        rule="preference_losses_have_no_token_weights",
        good={"loss_scale": "ignore_empty_think"},
        bad={"loss_scale": "react"},
        task="rlhf",
    ),
    *(
        Case(
            rule=rule,
            good={"precompute_ref_log_probs": True},
            bad={"precompute_ref_log_probs": True, other: True},
            task="rlhf",
        )
        for rule, other in (
            ("without_a_reference_none_is_asked", "reference_free"),
            ("a_stream_is_not_known_beforehand", "streaming"),
            ("pairs_that_are_known_beforehand_are_not_lazy", "lazy_tokenize"),
        )
    ),
    Case(rule="channels_have_no_preference_loss", good={}, bad={"enable_channel_loss": True}, task="rlhf"),
    Case(
        rule="a_loss_belongs_to_its_algorithm",
        good={**KTO, "loss_type": "apo_zero_unpaired"},
        bad={**KTO, "loss_type": "ipo"},
        given=("loss_type",),
        task="rlhf",
    ),
    Case(
        rule="losses_of_single_answers_are_not_mixed",
        good={"loss_types": ("hinge", "sft")},
        bad={"loss_types": ("hinge", "kto")},
        task="rlhf",
    ),
    Case(
        rule="a_divergence_is_estimated_from_several_answers",
        good=KTO,
        bad={**KTO, "micro_batch_size": 1},
        task="rlhf",
    ),
    Case(
        rule="rewards_are_centered_in_rm",
        good={**RM, "center_rewards_coefficient": 0.01},
        bad={"center_rewards_coefficient": 0.01},
        task="rlhf",
    ),
    *(
        Case(rule=f"rm_has_no_{name}", good=RM, bad={**RM, name: value}, task="rlhf")
        for name, value in (
            ("loss_types", ("hinge",)),
            ("loss_weights", (1.0,)),
            ("label_smoothing", 0.2),
            ("rpo_alpha", 1.0),
            ("f_divergence_type", "forward_kl"),
            ("f_alpha_divergence_coef", 0.2),
            ("discopop_tau", 0.2),
            ("beta", 0.2),
            ("ref_load", "/ref"),
            ("ref_adapter_load", "/ref"),
            ("reference_free", True),
            ("precompute_ref_log_probs", True),
        )
    ),
    Case(rule="kto_has_a_reference", good=KTO, bad={**KTO, "reference_free": True}, task="rlhf"),
    *(
        Case(rule=f"kto_has_no_{name}", good=KTO, bad={**KTO, name: value}, task="rlhf")
        for name, value in (
            ("loss_types", ("hinge",)),
            ("loss_weights", (1.0,)),
            ("label_smoothing", 0.1),
            ("rpo_alpha", 1.0),
            ("f_divergence_type", "forward_kl"),
            ("f_alpha_divergence_coef", 0.2),
            ("discopop_tau", 0.2),
        )
    ),
    *(
        Case(rule=f"{name}_belongs_to_kto", good={**KTO, name: 2.0}, bad={name: 2.0}, task="rlhf")
        for name in ("desirable_weight", "undesirable_weight")
    ),
    Case(
        rule="dynamic_fine_tuning_is_no_preference_loss",
        good={},
        bad={"enable_dft_loss": True},
        task="rlhf",
    ),
    *(
        Case(
            rule="extra_fields_have_no_argument",
            good={"extra_megatron_kwargs": {"fp32_residual_connection": True, "moe_layer_recompute": True}},
            bad={"extra_megatron_kwargs": {"fp32_residual_connection": True, **other}},
        )
        for other in ({"lr-warmup-iters": 3}, {"num_train_epochs": 1}, {"profile": True}, {"init_method_std": 0.006})
    ),
    # reporting
    Case(rule="the_log_level_exists", good={"logging_level": "debug"}, bad={"logging_level": "LOUD"}),
    Case(
        rule="a_wandb_run_name_has_a_project",
        good={"wandb_project": "p", "wandb_exp_name": "r"},
        bad={"wandb_exp_name": "r"},
    ),
    Case(
        rule="a_wandb_folder_has_a_project",
        good={"wandb_project": "p", "wandb_save_dir": "/w"},
        bad={"wandb_save_dir": "/w"},
    ),
    *(
        Case(rule=rule, good={"report_to": ["swanlab"], name: "p"}, bad={name: "p"})
        for rule, name in (
            ("a_swanlab_project_is_reported_to", "swanlab_project"),
            ("a_swanlab_experiment_is_reported_to", "swanlab_exp_name"),
        )
    ),
    # export
    Case(rule="an_export_does_one_thing", good={"to_hf": True}, bad={}, task="export"),
    Case(
        rule="an_export_does_one_thing",
        good={"to_mcore": True},
        bad={"to_mcore": True, "to_hf": True},
        task="export",
    ),
    Case(
        rule="a_hugging_face_export_has_a_source",
        good={"to_hf": True, "mcore_model": "/c"},
        bad={"to_hf": True},
        task="export",
    ),
    Case(
        rule="a_megatron_export_has_a_source",
        good={"to_mcore": True, "model": "m"},
        bad={"to_mcore": True},
        task="export",
    ),
    Case(
        rule="a_cached_data_set_has_a_source",
        good={"to_cached_dataset": True, "model": "m", "dataset": ("d",)},
        bad={"to_cached_dataset": True, "model": "m"},
        task="export",
    ),
    Case(
        rule="a_preference_task_is_that_of_tokenized_data",
        good={"to_cached_dataset": True, "model": "m", "dataset": ("d",), "rlhf_type": "kto"},
        bad={"to_hf": True, "mcore_model": "/m", "rlhf_type": "kto"},
        task="export",
    ),
    Case(
        rule="one_adapter_is_exported",
        good={"mcore_adapters": ("a",)},
        bad={"mcore_adapters": ("a", "b")},
        task="export",
    ),
    Case(rule="a_shard_size_has_a_unit", good={"max_shard_size": "500 MB"}, bad={"max_shard_size": "5"}),
    Case(
        rule="an_export_is_one_process",
        good={"tensor_model_parallel_size": 1},
        bad={"tensor_model_parallel_size": 2},
        task="export",
    ),
    Case(
        rule="a_test_type_can_be_computed_in",
        good={"test_convert_dtype": "bfloat16", "test_convert_precision": True},
        bad={"test_convert_dtype": "float8", "test_convert_precision": True},
        task="export",
    ),
    Case(
        rule="only_an_adapter_stays_unmerged",
        good={"merge_lora": False, "mcore_adapters": ("a",)},
        bad={"merge_lora": False},
        task="export",
    ),
    Case(
        rule="a_precision_test_needs_the_same_model_twice",
        good={"test_convert_precision": True, "to_cached_dataset": False},
        bad={"test_convert_precision": True, "to_cached_dataset": True},
        task="export",
    ),
    Case(
        rule="cached_data_is_packed_later",
        good={"to_cached_dataset": True},
        bad={"to_cached_dataset": True, "packing": True},
        task="export",
    ),
    Case(
        rule="a_stream_is_not_stored",
        good={"to_cached_dataset": True},
        bad={"to_cached_dataset": True, "streaming": True},
        task="export",
    ),
    Case(
        rule="a_file_count_belongs_to_a_megatron_export",
        good={"thread_count": 2, "to_mcore": True},
        bad={"thread_count": 2, "to_hf": True},
        task="export",
    ),
    Case(
        rule="a_test_type_belongs_to_a_precision_test",
        good={"test_convert_dtype": "bfloat16", "test_convert_precision": True},
        bad={"test_convert_dtype": "bfloat16"},
        task="export",
    ),
    Case(
        rule="an_upload_has_a_repository",
        good={"push_to_hub": True, "hub_model_id": "a/b"},
        bad={"push_to_hub": True},
    ),
    Case(
        rule="a_repository_belongs_to_an_upload",
        good={"push_to_hub": True, "hub_model_id": "a/b"},
        bad={"hub_model_id": "a/b"},
    ),
    Case(
        rule="a_private_repository_belongs_to_an_upload",
        good={"push_to_hub": True, "hub_private_repo": True},
        bad={"hub_private_repo": True},
    ),
    Case(
        rule="a_commit_message_belongs_to_an_upload",
        good={"push_to_hub": True, "commit_message": "x"},
        bad={"commit_message": "x"},
    ),
    Case(
        rule="heads_are_trained_by_supervision",
        good={"task_type": "causal_lm"},
        bad={"task_type": "seq_cls"},
        task="rlhf",
    ),
    Case(
        rule="one_class_is_no_choice",
        good={"task_type": "seq_cls", "problem_type": "regression", "num_labels": 1},
        bad={"task_type": "seq_cls", "problem_type": "single_label_classification", "num_labels": 1},
    ),
    Case(
        rule="scores_belong_to_a_classifier",
        good={"task_type": "seq_cls", "num_labels": 3},
        bad={"num_labels": 3},
    ),
    Case(
        rule="a_problem_belongs_to_a_classifier",
        good={"task_type": "seq_cls", "problem_type": "regression"},
        bad={"problem_type": "regression"},
    ),
    Case(
        rule="a_classifier_has_no_token_losses_to_reweight",
        good={"task_type": "seq_cls"},
        bad={"task_type": "seq_cls", "enable_dft_loss": True},
    ),
    Case(
        rule="a_classifier_has_no_losses_of_channels",
        good={"task_type": "seq_cls"},
        bad={"task_type": "seq_cls", "enable_channel_loss": True},
    ),
    Case(
        rule="cached_data_has_no_labels",
        good={"task_type": "seq_cls"},
        bad={"task_type": "seq_cls", "cached_dataset": ("a",)},
    ),
    Case(
        rule="cached_validation_data_has_no_labels",
        good={"task_type": "seq_cls"},
        bad={"task_type": "seq_cls", "cached_val_dataset": ("a",)},
    ),
    Case(
        rule="a_classifier_has_no_cross_entropy_of_tokens",
        good={"task_type": "seq_cls"},
        bad={"task_type": "seq_cls", "cross_entropy_loss_fusion": True},
    ),
    Case(
        rule="a_loss_of_texts_belongs_to_its_kind",
        good={"task_type": "embedding", "loss_type": "contrastive"},
        bad={"task_type": "reranker", "loss_type": "infonce"},
    ),
    Case(
        rule="losses_of_texts_are_no_preference_losses",
        good={"loss_type": "hinge"},
        bad={"loss_type": "infonce"},
        task="rlhf",
    ),
    Case(
        rule="similarities_of_a_batch_are_infonces",
        good={"task_type": "embedding", "infonce_temperature": 0.05},
        bad={"task_type": "embedding", "loss_type": "contrastive", "infonce_temperature": 0.05},
    ),
    Case(
        rule="a_list_of_documents_is_listwise",
        good={"task_type": "reranker", "loss_type": "listwise_reranker", "listwise_reranker_temperature": 2.0},
        bad={"task_type": "reranker", "listwise_reranker_temperature": 2.0},
    ),
    Case(
        rule="each_size_has_a_weight",
        good={"task_type": "embedding", "matryoshka_dims": (8, 16), "matryoshka_weights": (1.0, 2.0)},
        bad={"task_type": "embedding", "matryoshka_dims": (8, 16), "matryoshka_weights": (1.0,)},
    ),
    Case(
        rule="an_embedding_is_cut_to_less",
        good={"task_type": "embedding", "matryoshka_dims": (8, 64)},
        bad={"task_type": "embedding", "matryoshka_dims": (8, 65)},
        config=DENSE,
    ),
    Case(
        rule="yes_is_not_no",
        good={"task_type": "generative_reranker", "generative_reranker_positive_token": "Yes"},
        bad={"task_type": "generative_reranker", "generative_reranker_positive_token": "no"},
    ),
    Case(
        rule="a_generative_reranker_asks_in_its_own_words",
        good={"task_type": "reranker", "system": "a"},
        bad={"task_type": "generative_reranker", "system": "a"},
    ),
    Case(
        rule="an_embedding_model_has_no_output_layer",
        good={"task_type": "embedding", "train_type": "lora", "modules_to_save": ("word_embeddings",)},
        bad={"task_type": "embedding", "train_type": "lora", "modules_to_save": ("output_layer",)},
    ),
    Case(
        rule="embeddings_are_cut",
        good={"task_type": "embedding", "matryoshka_dims": (8,)},
        bad={"task_type": "reranker", "matryoshka_dims": (8,)},
    ),
    Case(
        rule="weights_are_of_sizes",
        good={"task_type": "embedding", "matryoshka_dims": (8,), "matryoshka_weights": (1.0,)},
        bad={"task_type": "embedding", "matryoshka_weights": (1.0,)},
    ),
    Case(
        rule="positives_are_drawn_for_a_reranker",
        good={"task_type": "reranker", "max_positive_samples": 2},
        bad={"max_positive_samples": 2},
    ),
    Case(
        rule="negatives_are_drawn_for_a_reranker",
        good={"task_type": "reranker", "max_negative_samples": 2},
        bad={"max_negative_samples": 2},
    ),
    Case(
        rule="yes_is_a_generative_rerankers",
        good={"task_type": "generative_reranker", "generative_reranker_positive_token": "Yes"},
        bad={"task_type": "reranker", "generative_reranker_positive_token": "Yes"},
    ),
    Case(
        rule="no_is_a_generative_rerankers",
        good={"task_type": "generative_reranker", "generative_reranker_negative_token": "No"},
        bad={"task_type": "reranker", "generative_reranker_negative_token": "No"},
    ),
    Case(
        rule="fake_negatives_are_of_a_batch",
        good={"task_type": "embedding", "infonce_mask_fake_negative": True},
        bad={"task_type": "embedding", "infonce_mask_fake_negative": True, "infonce_use_batch": False},
    ),
    Case(
        rule="queries_are_of_a_batch",
        good={"task_type": "embedding", "infonce_include_qq": True},
        bad={"task_type": "embedding", "infonce_include_qq": True, "infonce_use_batch": False},
    ),
    Case(
        rule="documents_are_of_a_batch",
        good={"task_type": "embedding", "infonce_include_dd": True},
        bad={"task_type": "embedding", "infonce_include_dd": True, "infonce_use_batch": False},
    ),
    Case(
        rule="a_margin_is_of_fake_negatives",
        good={"task_type": "embedding", "infonce_mask_fake_negative": True, "infonce_fake_neg_margin": 0.2},
        bad={"task_type": "embedding", "infonce_fake_neg_margin": 0.2},
    ),
    Case(
        rule="texts_have_no_token_losses_to_reweight",
        good={"task_type": "embedding"},
        bad={"task_type": "embedding", "enable_dft_loss": True},
    ),
    Case(
        rule="texts_have_no_losses_of_channels",
        good={"task_type": "embedding"},
        bad={"task_type": "embedding", "enable_channel_loss": True},
    ),
    Case(
        rule="cached_data_has_no_texts",
        good={"task_type": "embedding"},
        bad={"task_type": "embedding", "cached_dataset": ("a",)},
    ),
    Case(
        rule="cached_validation_data_has_no_texts",
        good={"task_type": "embedding"},
        bad={"task_type": "embedding", "cached_val_dataset": ("a",)},
    ),
]

RULES_WITHOUT_CASE = set(RULES) - {case.rule for case in CASES}
