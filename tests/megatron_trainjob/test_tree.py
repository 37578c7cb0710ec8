"""The declared arguments against the reference: names, groups, types, defaults, choices, units and 4.x names."""

from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
import yaml

from megatron_trainjob.args.names import ALIASES
from megatron_trainjob.args.parse import task_defaults
from megatron_trainjob.args.rules.image import IMAGE_ARGUMENTS
from megatron_trainjob.args.tree import ARGUMENTS, GROUPS, TrainArgs
from megatron_trainjob.families import FAMILIES

REFERENCE = Path(__file__).parent / "reference"
MEGATRON = yaml.safe_load((REFERENCE / "arguments.yaml").read_text())["arguments"]
BASIC = yaml.safe_load((REFERENCE / "base_arguments.yaml").read_text())["arguments"]

# Where we differ from the reference, and why.
FURTHER_CHOICES = {
    "train_type": ("lora_llm",),
    "optimizer": ("muon", "dist_muon", "lion"),
    "lr_decay_style": ("WSD",),  # of 4.x
    "recompute_granularity": ("none",),  # 4.x value; without it nothing turns recomputation off
    "loss_type": (
        *("sigmoid_norm", "aot_unpaired", "sft", "kto", "apo_zero_unpaired"),  # of TRL
        *("infonce", "cosine_similarity", "contrastive", "online_contrastive"),  # of 4.x, for task_type embedding
        *("pointwise_reranker", "listwise_reranker"),
    ),
    "rlhf_type": ("kto", "rm"),  # of 3.9
    "f_divergence_type": ("forward_kl",),
    "loss_scale": tuple(  # of 4.x
        form.format(name)
        for form in ("last_round+{}", "{}+ignore_empty_think", "last_round+{}+ignore_empty_think")
        for name in ("react", "hermes", "qwen", "agentflan", "alpha_umi")
    ),
}
OF_TRL = {"loss_types", "loss_weights", "f_alpha_divergence_coef", "discopop_tau", "precompute_ref_log_probs"}
OF_TRL |= {"desirable_weight", "undesirable_weight", "center_rewards_coefficient"}
OF_RETRIEVAL = {name for name, argument in ARGUMENTS.items() if argument.group == "retrieval"}
"""Environment variables of ms-swift, and the sizes of sentence-transformers' Matryoshka loss."""
FURTHER_ARGUMENTS = (
    OF_TRL
    | OF_RETRIEVAL
    | {"log_total_limit", "min_pixels", "image_root", "image_cache_gib"}  # of this project alone
    | {  # of ms-swift 4.x
        "add_non_thinking_prefix",
        "num_labels",
        "problem_type",
        "async_save",
        "cp_comm_type",
        "vit_lr",
        "aligner_lr",
        "decoupled_lr",
        "decoupled_min_lr",
        "lion_beta1",
        "lion_beta2",
        "mtp_loss_scaling_factor",
        "mtp_num_layers",
        "muon_extra_scale_factor",
        "muon_fp32_matmul_prec",
        "muon_momentum",
        "muon_num_ns_steps",
        "muon_scale_mode",
        "muon_split_qkv",
        "muon_tp_mode",
        "muon_use_nesterov",
        "cached_val_dataset",
        "chat_template_kwargs",
        "enable_thinking",
        "eval_strategy",
        "greater_is_better",
        "group_by_length",
        "load_best_model_at_end",
        "metric_for_best_model",
        "num_layers_per_virtual_pipeline_stage",
        "pipeline_model_parallel_layout",
        "keep_incomplete_rows",
        "lr_warmup_init",
        "lr_wsd_decay_iters",
        "lr_wsd_decay_style",
        "preserve_thinking",
        "report_to",
        "save_safetensors",
        "save_strategy",
        "save_total_limit",
        "split_turns",
        "stop_words",
        "swanlab_exp_name",
        "swanlab_project",
        "virtual_pipeline_model_parallel_size",
    }
)
ALIAS_ONLY = {"ddp_backend": "distributed_backend"}  # the reference has the argument twice
OTHER_TYPE = {"rope_scaling": "str|json"}  # the basic argument of the same name also takes a bare word
ELSEWHERE = {  # the rlhf entries override the arguments of the same names
    ("rlhf", "loss_scale"),
    ("rlhf", "calculate_per_token_loss"),
}


def entries():
    """Every entry of both files that declares an argument of its own."""
    seen = set()
    for entry in [*MEGATRON, *BASIC]:
        key = (entry["group"], entry["name"])
        if key in ELSEWHERE or entry["name"] in seen or entry["name"] in ALIAS_ONLY:
            continue
        seen.add(entry["name"])
        yield entry


ENTRIES = {entry["name"]: entry for entry in entries()}


def as_declared(value):
    return tuple(value) if isinstance(value, list) else value


def test_the_reference_has_187_entries():
    assert len(MEGATRON) == 187


def test_every_argument_of_the_reference_is_declared_and_no_other():
    assert {name for name, argument in ARGUMENTS.items() if argument.group != "elsewhere"} == {
        *ENTRIES,
        *FURTHER_ARGUMENTS,
    }


def test_every_argument_is_a_field_of_the_flat_record():
    assert [field.name for field in fields(TrainArgs)] == list(ARGUMENTS)


def test_arguments_have_the_groups_and_types_of_the_reference():
    expected = {name: (entry["group"], OTHER_TYPE.get(name, entry["type"])) for name, entry in ENTRIES.items()}
    assert {name: (ARGUMENTS[name].group, ARGUMENTS[name].type) for name in ENTRIES} == expected


def test_arguments_have_the_defaults_of_the_reference():
    """An argument that config.json can decide is unset by default; its fallback is the reference's default."""

    def default(argument):
        return argument.default if argument.fallback is None else argument.fallback

    fused = ("moe_grouped_gemm", "moe_permute_fusion", "cross_entropy_loss_fusion")
    decided_otherwise = {**dict.fromkeys(fused), "ddp_timeout": 600}  # docs/decisions/0009 and 0014
    expected = {name: as_declared(entry["default"]) for name, entry in ENTRIES.items()} | decided_otherwise
    assert {name: default(ARGUMENTS[name]) for name in ENTRIES} == expected


def test_only_what_config_json_can_decide_has_a_fallback():
    inferred = {name for name, entry in ENTRIES.items() if entry["inferred_from_hf_config"]}
    with_fallback = {argument.name for argument in ARGUMENTS.values() if argument.fallback is not None}
    assert with_fallback <= inferred
    assert {ARGUMENTS[name].default for name in with_fallback} == {None}


def test_an_empty_record_has_every_default():
    assert vars(TrainArgs()) == {argument.name: argument.default for argument in ARGUMENTS.values()}


def test_arguments_have_the_choices_of_the_reference():
    def choices(name, entry):
        return None if entry["choices"] is None else (*entry["choices"], *FURTHER_CHOICES.get(name, ()))

    expected = {name: choices(name, entry) for name, entry in ENTRIES.items()}
    assert {name: ARGUMENTS[name].choices for name in ENTRIES} == expected


def test_arguments_are_featured_as_in_the_reference():
    expected = {name for name, entry in ENTRIES.items() if entry["featured"]}
    assert {argument.name for argument in ARGUMENTS.values() if argument.featured} == expected


OF_PROSE = {"moe_router_topk": {"n_group"}, "moe_shared_expert_intermediate_size": {"moe_intermediate_size"}}
"""Keys with which the reference says how a value is used, not where it stands."""


def test_arguments_know_their_keys_in_config_json():
    """Those of the reference that a family reads."""
    read = {key for family in FAMILIES.values() for key in family.keys}
    words = {name: set(" ".join(entry.get("hf_config_keys") or ()).split()) for name, entry in ENTRIES.items()}
    missing = {
        name: (keys & read) - set(ARGUMENTS[name].hf_config_keys) - OF_PROSE.get(name, set())
        for name, keys in words.items()
    }
    assert {name: keys for name, keys in missing.items() if keys} == {}


def test_keys_of_arguments_are_read_by_a_family():
    read = {key for family in FAMILIES.values() for key in family.keys} | {"torch_dtype", "rope_scaling"}
    unread = {name: set(argument.hf_config_keys) - read for name, argument in ARGUMENTS.items()}
    assert {name: keys for name, keys in unread.items() if keys} == {}


def test_arguments_have_their_names_of_4x():
    renamed = {name: entry["name_in_4x"] for name, entry in ENTRIES.items() if entry.get("name_in_4x")}
    expected = {text.split()[0]: (name, text.endswith("(inverted)")) for name, text in renamed.items()}
    found = {name: (alias.canonical, alias.inverted) for name, alias in ALIASES.items()}
    assert {name: found.get(name) for name in expected} == expected


def test_an_argument_that_the_reference_has_twice_is_another_name():
    assert {name: ALIASES[name].canonical for name in ALIAS_ONLY} == ALIAS_ONLY


def test_the_misspelt_name_of_the_reference_is_accepted():
    assert ALIASES["moe_ffn_hidden_siz"].canonical == "moe_ffn_hidden_size"


def test_preference_training_has_its_own_defaults():
    overrides = {entry["name"]: entry["default"] for entry in MEGATRON if (entry["group"], entry["name"]) in ELSEWHERE}
    assert task_defaults("rlhf") == overrides


def test_pre_training_trains_every_token_of_plain_text():
    assert task_defaults("pt") == {"loss_scale": "all", "use_chat_template": False}


def test_basic_arguments_are_accepted_by_the_commands_that_read_them():
    own = [entry for entry in BASIC if entry["name"] not in ALIAS_ONLY and not entry.get("same_as")]
    missing = {entry["name"]: set(entry["applies_to"]) - set(ARGUMENTS[entry["name"]].applies_to) for entry in own}
    assert {name: tasks for name, tasks in missing.items() if tasks} == {}


def test_arguments_about_images_work_and_derived_ones_are_refused_or_change_nothing():
    about_images = [entry["name"] for entry in MEGATRON if "multimodal_model" in entry["requires"]]
    uses = ("multimodal", "derived", "inference_only")
    others = [
        entry["name"] for entry in BASIC if entry["megatron_use"] in uses and entry["name"] not in IMAGE_ARGUMENTS
    ]
    assert {ARGUMENTS[name].status for name in about_images} == {"works"}
    assert {ARGUMENTS[name].status for name in others} <= {"refused", "no effect"}


def test_every_argument_is_explained_in_one_short_line():
    def is_short_sentence(text):
        return 10 < len(text) < 200 and "\n" not in text and text.endswith((".", '"'))

    assert [argument.name for argument in ARGUMENTS.values() if not is_short_sentence(argument.help)] == []


def test_every_refusal_and_nothing_else_has_a_reason():
    explained = {argument.name for argument in ARGUMENTS.values() if argument.status in ("refused", "no effect")}
    assert {argument.name for argument in ARGUMENTS.values() if argument.reason} == explained


def test_refused_choices_are_choices():
    wrong = [
        (argument.name, choice)
        for argument in ARGUMENTS.values()
        for choice in (*argument.refused_choices, *argument.warned_choices)
        if argument.choices is not None and choice not in argument.choices
    ]
    assert wrong == []


def test_arguments_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        TrainArgs().lr = 1.0


def test_each_group_class_belongs_to_the_flat_record():
    assert set(GROUPS.values()) <= set(TrainArgs.__mro__)
