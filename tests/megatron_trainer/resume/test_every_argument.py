"""Every argument that a run may change when it goes on is tried, in its table or in the tests named below."""

from megatron_trainjob.args import resume
from megatron_trainjob.args.tree import ARGUMENTS
from tests.support.arguments.changes_on_resume import TAKE_EFFECT

TRIED = {name for changed, _ in TAKE_EFFECT for name in changed} | {"lora_dropout"}
OF_EXPERTS = {name for name, argument in ARGUMENTS.items() if argument.group == "moe"}
OTHER_LAYOUTS = {
    name
    for name in ARGUMENTS
    if name.endswith(("parallel_size", "parallel", "pipeline_num_layers", "virtual_pipeline_stage", "parallel_layout"))
}
"""tests/megatron_trainer/checkpoint/test_layouts.py and tests/effects/test_layout_effects.py go on with each."""
AS_OTHER_DATA = {"cached_dataset", "columns", "interleave_prob", "stopping_strategy", "strict", "template"} | {
    "val_dataset_shuffle",
    "padding_side",
    "max_model_len",
    "mlp_padding_free",
    "download_mode",
    "custom_dataset_info",
    "model_author",
    "model_name",
    "cached_val_dataset",
    "agent_template",
    "chat_template_kwargs",
    "enable_thinking",
    "preserve_thinking",
    "add_non_thinking_prefix",
    "keep_incomplete_rows",
    "split_turns",
    "stop_words",
}
"""They decide which rows are read, and are in the identity of the data."""
OF_PREFERENCE = {name for name, argument in ARGUMENTS.items() if argument.applies_to == ("rlhf",)}
"""tests/effects/test_preference_effects.py sees what each does to a step."""
OF_MATRICES = {name for name in ARGUMENTS if name.startswith(("muon_", "lion_"))}
"""As Adam's; tests/effects/test_matrix_optimizer_effects.py goes on with these optimizers."""
OF_RETRIEVAL = {
    name for name in ARGUMENTS if name.startswith(("infonce_", "matryoshka_", "listwise_", "generative_"))
} | {
    "max_positive_samples",
    "max_negative_samples",
    "loss_type",
}
"""tests/effects/test_retrieval_effects.py sees what each does to a step."""
OF_ANOTHER_BACKEND = {"fp16", "bf16", "transformer_impl", "wandb_exp_name", "wandb_project", "wandb_save_dir"} | {
    "swanlab_exp_name",
    "swanlab_project",
}


def test_every_argument_that_may_change_is_tried():
    may = {n for n, a in ARGUMENTS.items() if a.status == "works" and resume.verdict(n) == "takes effect"}
    untried = may - TRIED - OF_EXPERTS - OTHER_LAYOUTS - AS_OTHER_DATA - OF_PREFERENCE - OF_ANOTHER_BACKEND
    untried -= OF_MATRICES | OF_RETRIEVAL
    assert untried == {
        "ckpt_format",  # of what is loaded; saved is one form
        "extra_megatron_kwargs",  # whatever Megatron does with it
        "max_position_embeddings",  # a bound on max_length
        "no_initialization",  # the weights come from the checkpoint
        "padded_vocab_size",  # follows the layout
        "rotary_interleaved",  # the model's own value or a refusal
        "seq_length",  # a plan of Megatron's; rows have their own lengths
        "sgd_momentum",  # as the settings of Adam
        "lr_warmup_init",  # as lr_warmup_iters
        "lr_wsd_decay_iters",  # as lr_decay_iters
        "lr_wsd_decay_style",  # as lr_decay_style
        "report_to",  # as wandb_project
        "save_safetensors",  # of what is written beside a checkpoint
        "tensorboard_dir",  # as save
        "exit_on_missing_checkpoint",  # of load, which this run does not need
        "group_by_length",  # as another order of the data
        "save_strategy",  # test_checkpoint_effects.py, as the next four
        "eval_strategy",
        "metric_for_best_model",
        "greater_is_better",
        "load_best_model_at_end",
        "quant_bits",  # of an export, as the next
        "quant_method",
        "image_cache_gib",  # how much of what is computed again is kept
        "image_root",  # where the images of the same rows are
        "max_pixels",  # these four are in the identity of the data
        "model_kwargs",
        "min_pixels",
        "norm_bbox",
        "vit_lr",  # as decoupled_lr; test_vision_effects.py sees what each of these four does
        "aligner_lr",
        "vit_gradient_checkpointing",
        "gradient_checkpointing_kwargs",
        "mtp_loss_scaling_factor",  # test_prediction_effects.py
    }
