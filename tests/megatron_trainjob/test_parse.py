"""A mapping becomes arguments, or every problem at once."""

from dataclasses import replace

import pytest

from megatron_trainjob.args.parse import Refused, parse
from megatron_trainjob.args.tree import ARGUMENTS
from megatron_trainjob.violation import Violation

RUN = {"model": "m", "dataset": ["d"], "train_iters": 10}


def problems(mapping, task="sft"):
    return [str(violation) for violation in parse({**RUN, **mapping}, task=task).violations]


def test_given_arguments_are_set_and_the_others_have_their_defaults():
    parsed = parse({**RUN, "lr": "1e-4", "packing": True}, task="sft")
    assert parsed.violations == parsed.warnings == ()
    assert parsed.given == {"model", "dataset", "train_iters", "lr", "packing"}
    assert (parsed.args.lr, parsed.args.packing, parsed.args.dataset) == (1e-4, True, ("d",))
    assert parsed.args.min_lr == 0.0


def test_null_counts_as_not_given():
    parsed = parse({**RUN, "lr": None, "packing": None}, task="sft")
    assert parsed.given == {"model", "dataset", "train_iters"}
    assert parsed.args.packing is False


@pytest.mark.parametrize(
    ("task", "loss_scale", "use_chat_template", "per_token"),
    [("sft", "default", True, True), ("pt", "all", False, True), ("rlhf", "last_round", True, False)],
)
def test_each_task_has_its_own_defaults(task, loss_scale, use_chat_template, per_token):
    args = parse(RUN, task=task).args
    assert args.loss_scale == loss_scale
    assert args.use_chat_template == use_chat_template
    assert args.calculate_per_token_loss == per_token


def test_all_problems_are_reported_at_once_with_path_value_and_remedy():
    parsed = parse(
        {
            "dataset": "d",
            "micro_batch_size": 0,
            "lrr": 1e-5,
            "lr_decay_style": "wsd",
            "fp16": True,
            "bf16": True,
            "sequence_parallel_size": 2,
            "loss_types": ["hinge"],
        },
        task="sft",
    )
    assert isinstance(parsed, Refused)
    assert parsed.violations == (
        Violation(path="spec.args.dataset", value="d", message="expects a list of texts such as [a, b]; write [d]"),
        Violation(path="spec.args.micro_batch_size", value=0, message="must be at least 1"),
        Violation(path="spec.args.lrr", value=1e-5, message="unknown argument; did you mean lr?"),
        Violation(
            path="spec.args.lr_decay_style",
            value="wsd",
            message="must be one of cosine, linear, constant, WSD; did you mean WSD?",
        ),
        Violation(
            path="spec.args.sequence_parallel_size",
            value=2,
            message=f"is refused: {ARGUMENTS['sequence_parallel_size'].reason}",
        ),
        Violation(
            path="spec.args.loss_types",
            value=("hinge",),
            message="applies to rlhf only and this is sft; remove it",
        ),
        Violation(
            path="spec.args.model",
            value=None,
            message="is missing; set it to a Hub id or a folder with config.json and tokenizer",
        ),
        Violation(
            path="spec.args.train_iters",
            value=None,
            message="or max_epochs is required to determine the length of the run; set one of them",
        ),
        Violation(
            path="spec.args.fp16", value=True, message="cannot be combined with bf16: true; change one of the two"
        ),
    )


def test_unknown_argument_without_a_near_one_points_to_the_list():
    assert problems({"xyzzy": 1}) == ["spec.args.xyzzy: unknown argument; docs/arguments.md lists all of them (got 1)"]


def test_names_of_training_for_its_source_and_result_are_other_names_in_an_export():
    parsed = parse({"to_hf": True, "load": "/c", "save": "/o"}, task="export")
    assert (parsed.violations, parsed.args.mcore_model, parsed.args.output_dir) == ((), "/c", "/o")
    assert (parsed.args.load, parsed.args.save) == (None, None)
    trained = parse({**RUN, "mcore_model": "/c", "output_dir": "/o"}, task="sft").args
    assert (trained.load, trained.save) == ("/c", "/o")


@pytest.mark.parametrize(
    ("given", "task", "said"),
    [
        ({"use_vllm": True}, "rlhf", "belongs to GRPO, which generates answers while it trains"),
        ({"vllm_max_model_len": 9}, "rlhf", "belongs to GRPO, which generates answers while it trains"),
        ({"rlhf_type": "grpo"}, "rlhf", "grpo belongs to a method which generates answers while it trains"),
        (
            {"fps_max_frames": 12},
            "sft",
            "is a setting of images and videos; write it as model_kwargs: {fps_max",
        ),
        ({"qwenvl_bbox_format": "new"}, "sft", "write it as model_kwargs: {qwenvl_bbox_format"),
        ({"vit_attn_impl": "eager"}, "sft", "belongs to models with images, whose tower runs as"),
        ({"optimizer": "adaptive_muon"}, "sft", "adaptive_muon has a state that checkpoints do not include"),
    ],
    ids=str,
)
def test_what_belongs_to_another_method_is_said_in_one_sentence(given, task, said):
    [problem] = problems(given, task=task)
    assert said in problem
    assert "did you mean" not in problem


@pytest.mark.parametrize(
    ("name", "meant"),
    [("image_folder", "image_root"), ("freeze_vision_tower", "freeze_vit"), ("merger_lr", "aligner_lr")],
)
def test_names_of_other_programs_for_images_lead_to_ours(name, meant):
    [problem] = problems({name: "x"}, task="sft")
    assert f"unknown argument; did you mean {meant}?" in problem


def test_name_of_4x_is_accepted_with_a_warning():
    parsed = parse({"model": "m", "dataset": ["d"], "num_train_epochs": 2}, task="sft")
    assert parsed.args.max_epochs == 2
    assert parsed.given == {"model", "dataset", "max_epochs"}
    assert [str(warning) for warning in parsed.warnings] == [
        "spec.args.num_train_epochs: is another name of max_epochs; write max_epochs (got 2)"
    ]


def test_inverted_name_of_4x_means_the_opposite():
    parsed = parse({**RUN, "bias_dropout_fusion": False}, task="sft")
    assert parsed.args.no_bias_dropout_fusion is True
    assert [str(warning) for warning in parsed.warnings] == [
        "spec.args.bias_dropout_fusion: is another name of the opposite of no_bias_dropout_fusion;"
        " write no_bias_dropout_fusion (got False)"
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sequence_parallel": True}, ["sequence_parallel: has no effect without tensor_model_parallel_size > 1"]),
        ({"eval_interval": 5}, ["eval_interval: has no effect without validation data (val_dataset or split_dataset"]),
        ({"moe_token_dispatcher_type": "flex"}, ["moe_token_dispatcher_type: is alltoall here, with the same result"]),
        ({"lora_rank": 16, "lora_alpha": 64}, ["lora_alpha: has no effect", "lora_rank: has no effect without train_"]),
        ({"masked_softmax_fusion": False}, ["masked_softmax_fusion: is another name of the opposite of"]),
        ({"no_masked_softmax_fusion": True, "template_backend": "jinja"}, []),
    ],
    ids=["layout", "evaluation", "dispatcher", "adapter", "fulfilled, under another name", "fulfilled"],
)
def test_what_changes_nothing_is_accepted_with_a_warning(given, said):
    parsed = parse({**RUN, **given}, task="sft")
    warnings = sorted(str(warning).removeprefix("spec.args.") for warning in parsed.warnings)
    assert parsed.violations == ()
    assert [text[: len(part)] for text, part in zip(warnings, said, strict=True)] == said


def test_two_names_of_one_argument_must_agree():
    assert parse({**RUN, "save_interval": 5, "save_steps": 5}, task="sft").violations == ()
    assert problems({"save_interval": 5, "save_steps": 6}) == [
        "spec.args.save_steps: is an alias of save_interval, which has a different value; remove one of them (got 6)"
    ]


def test_default_of_a_refused_argument_is_accepted():
    assert problems({"freeze_vit": True, "beta": 0.1, "to_mcore": False}) == []


def test_argument_that_does_not_work_yet_is_refused_unless_it_has_its_default(monkeypatch):
    for name in ("manual_gc", "wandb_project", "rpo_alpha"):
        monkeypatch.setitem(ARGUMENTS, name, replace(ARGUMENTS[name], status="not yet"))
    assert problems({"manual_gc": False, "wandb_project": ""}) == []
    assert problems({"manual_gc": True}) == [
        "spec.args.manual_gc: does not work yet; remove it or leave it at false (got True)"
    ]
    assert problems({"rpo_alpha": 1.0}, task="rlhf") == ["spec.args.rpo_alpha: does not work yet; remove it (got 1.0)"]


def test_export_has_its_own_arguments():
    parsed = parse({"to_hf": True, "mcore_model": "/ckpt", "output_dir": "/hf"}, task="export")
    assert (parsed.violations, parsed.warnings, parsed.args.output_dir) == ((), (), "/hf")
    found = parse({"to_hf": True, "mcore_model": "/ckpt", "fp8_format": "e4m3"}, task="export").violations
    assert [violation.message for violation in found] == ["applies to pt, sft, rlhf only and this is export; remove it"]


def test_path_names_where_the_mapping_came_from():
    assert parse({**RUN, "lr": -1}, task="sft", path="args").violations[0].path == "args.lr"
