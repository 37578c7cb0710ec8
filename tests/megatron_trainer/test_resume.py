"""A run that goes on with other arguments: each takes effect and is logged, or is refused with both values."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from megatron_trainer.train.schedule import Schedule, learning_rate
from megatron_trainjob.args import resume
from megatron_trainjob.args.tree import ARGUMENTS
from megatron_trainjob.checkpoint_folder import inspect
from megatron_trainjob.exit_codes import ExitCode, retry_class
from tests.support.matrix import mostly_slow
from tests.support.models import tiny_model
from tests.support.ranks import resume_ranks
from tests.support.ranks.pool import gloo_ranks
from tests.support.ranks.tiny_run import arguments, train, write_data

pytestmark = [pytest.mark.dist, pytest.mark.timeout(600)]
STEPS, SAVED = 4, 2
LORA = {"train_type": "lora", "lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.0}


@dataclass(frozen=True, kw_only=True)
class Base:
    """A run of four steps with a checkpoint after the second, for others to continue from."""

    given: dict
    run: object

    def go_on(self, folder, changed, *, ranks=1, task="sft", is_finished=False, record=None):
        """record: what stands in the args.json of run and checkpoint instead."""
        save = folder / "run"
        shutil.copytree(self.run.folder, save)
        for path in save.rglob("args.json") if record is not None else ():
            path.write_text(record)
        for iteration in range(STEPS + 1 if is_finished else SAVED + 1, STEPS + 1):
            shutil.rmtree(save / f"iter_{iteration:07d}", ignore_errors=True)
        given = {**self.given, "save": str(save), **changed}
        given = {name: value for name, value in given.items() if value is not None}
        return gloo_ranks(ranks).run(resume_ranks.resume_rank, given, task, 1)[0]


def base(llama, folder, **given) -> Base:
    data = write_data(folder / "train.jsonl")
    mapping = arguments(llama, data, folder / "run", train_iters=STEPS, save_interval=SAVED, min_lr=1e-4, **given)
    run = train(mapping)
    assert (run.exit_code, run.message) == (0, "")
    return Base(given=mapping, run=run)


@pytest.fixture(scope="module")
def llama(model_root):
    """A tiny Llama of two layers: no case here needs more."""
    return tiny_model.make("llama", model_root, num_hidden_layers=2)


@pytest.fixture(scope="module")
def full(llama, tmp_path_factory):
    return base(llama, tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def lora(llama, tmp_path_factory):
    return base(llama, tmp_path_factory.mktemp("lora"), **LORA)


def rates(*, peak=1e-3, floor=1e-4, warmup=0.0, decay=STEPS, style="cosine"):
    schedule = Schedule(peak=peak, floor=floor, warmup_steps=warmup, decay_steps=decay, style=style)
    return [learning_rate(schedule, step) for step in (2, 3)]


def other(column):
    return lambda found, whole: found.run.column(column)[2] != whole.column(column)[2]


def follows(**course):
    return lambda found, _: found.run.column("learning_rate")[-2:] == pytest.approx(rates(**course))


def in_groups(name, *values):
    return lambda found, _: {group[name] for group in found.groups} == set(values)


def same_loss(found, whole):
    """A run that ended before its first step has the losses of its past, too."""
    assert (found.run.exit_code, found.run.message) == (0, "")
    return found.run.column("lm loss") == pytest.approx(whole.column("lm loss"), abs=2e-5)


def rows_of(*iterations):
    return lambda found, _: [line["iteration"] for line in found.run.log if "lm loss" in line] == list(iterations)


def leaves(*names):
    return lambda found, _: sorted(path.name for path in found.run.folder.glob("iter_*")) == list(names)


def has(column):
    return lambda found, _: bool(found.run.column(column))


def other_data(found, _):
    return any("the data or its order differs from the checkpoint's" in line for line in found.warnings)


WITHOUT_EFFECT_ON_THE_NUMBERS = {
    "async_save": True,
    "padding_free": False,
    "enable_channel_loss": True,
    "recompute_granularity": "full",
    "recompute_method": "uniform",
    "recompute_num_layers": 1,
    "num_workers": 1,
    "manual_gc": True,
    "manual_gc_interval": 1,
    "cross_entropy_loss_fusion": True,
    "tensorboard_log_interval": 2,
    "tensorboard_queue_size": 7,
    "log_memory_to_tensorboard": False,
    "log_timers_to_tensorboard": False,
    "log_validation_ppl_to_tensorboard": False,
    "no_log_learning_rate_to_tensorboard": True,
    "log_throughput": True,
    "logging_level": "INFO",
    "log_total_limit": 16,
    "overlap_grad_reduce": True,
    "overlap_param_gather": True,
    "ddp_timeout": 1000,
    "dataset_num_proc": 2,
    "load_from_cache_file": False,
    "auto_detect_ckpt_format": False,
}
TAKE_EFFECT = [
    ({"lr": 5e-4}, follows(peak=5e-4)),
    ({"min_lr": 0.0}, follows(floor=0.0)),
    ({"lr": 5e-4, "min_lr": 5e-5, "lr_decay_style": "linear"}, follows(peak=5e-4, floor=5e-5, style="linear")),
    ({"lr_decay_style": "constant", "lr_warmup_iters": 3}, follows(style="constant", warmup=3)),
    ({"lr_decay_iters": 20}, follows(decay=20)),
    ({"lr_warmup_fraction": 0.75}, follows(warmup=3)),
    ({"train_iters": 6}, lambda found, _: found.run.column("learning_rate")[2:4] == pytest.approx(rates(decay=6))),
    ({"max_epochs": 1, "train_iters": None}, rows_of(1, 2, 3, 4)),
    (
        {"weight_decay": 0.5, "adam_beta1": 0.5, "adam_beta2": 0.6, "adam_eps": 1e-3},
        lambda found, _: (
            {(g["weight_decay"], g["betas"], g["eps"]) for g in found.groups}
            == {(0.0, (0.5, 0.6), 1e-3), (0.5, (0.5, 0.6), 1e-3)}
        ),
    ),
    ({"decoupled_lr": 1e-2, "decoupled_min_lr": 1e-3}, lambda found, _: len({g["lr"] for g in found.groups}) == 2),
    ({"clip_grad": 1e-3}, lambda found, _: found.settings["clip_grad"] == 1e-3),
    ({"global_batch_size": 2}, lambda found, _: found.run.column("consumed_samples")[-2:] == [10, 12]),
    ({"micro_batch_size": 2}, other("lm loss")),
    ({"save_interval": 1, "log_params_norm": True}, leaves("iter_0000002", "iter_0000003", "iter_0000004")),
    ({"save_total_limit": 1, "log_interval": 4}, leaves("iter_0000004")),
    (
        {"no_save_optim": True, "no_save_rng": True},
        lambda f, _: (m := inspect(f.run.folder / "iter_0000004").manifest) and not (m.has_optimizer or m.has_rng),
    ),
    ({"val_dataset": "DATA", "eval_interval": 1, "eval_iters": 1}, has("eval_lm loss")),
    ({"dataset": "DATA"}, other_data),
    ({"system": "You are short."}, other_data),
    ({"max_length": 100, "truncation_strategy": "right"}, other_data),
    ({"data_seed": 7}, other_data),
    ({"split_dataset_ratio": 0.2}, other_data),
    ({"packing": True, "packing_length": 128}, other_data),
    ({"dataset_shuffle": False, "lazy_tokenize": True}, other_data),
    ({"streaming": True, "shuffle_buffer_size": 4, "num_workers": None}, other_data),
    ({"use_chat_template": False}, other_data),
    ({"dataloader_type": "single"}, other("lm loss")),
    ({"loss_scale": "all"}, other("lm loss")),
    ({"attention_dropout": 0.3}, other("lm loss")),
    ({"hidden_dropout": 0.3, "seed": 7}, other("lm loss")),
    ({"enable_dft_loss": True}, other("lm loss")),
    ({"calculate_per_token_loss": False}, other("grad_norm")),
    ({"torch_dtype": "bfloat16"}, other("lm loss")),
    (WITHOUT_EFFECT_ON_THE_NUMBERS, same_loss),
    ({"deterministic_mode": True, "recompute_modules": ["mlp"]}, same_loss),
]


QUICK = ("lr", "train_iters", "weight_decay", "global_batch_size", "dataset", "loss_scale", "async_save")
"""Arguments whose changes `make test` tries; the others' are slow."""


def name_of(changed):
    return ",".join(f"{name}={value}" for name, value in list(changed.items())[:4]) if isinstance(changed, dict) else ""


def assert_logged(found, changed):
    for name, value in changed.items():
        value = ARGUMENTS[name].default if value is None else value
        expected = "unset" if value is None else repr(value)
        lines = [line for line in found.warnings if line.startswith(f"from step {SAVED + 1} on: {name} was ")]
        assert len(lines) == 1, name
        assert lines[0].endswith(f", is {expected}")


@pytest.mark.parametrize(
    ("changed", "takes_effect"),
    mostly_slow(TAKE_EFFECT, [case for case in TAKE_EFFECT if not case[0].keys().isdisjoint(QUICK)]),
    ids=name_of,
)
def test_a_changed_argument_takes_effect_and_is_logged_with_the_step_from_which_it_holds(
    full, tmp_path, changed, takes_effect
):
    other = [str(write_data(tmp_path / "other.jsonl", rows=9))]
    changed = {name: other if value == "DATA" else value for name, value in changed.items()}
    found = full.go_on(tmp_path, changed)
    assert (found.run.exit_code, found.run.message) == (0, "")
    assert found.run.column("lm loss")[:2] == full.run.column("lm loss")[:2]
    assert takes_effect(found, full.run)
    assert_logged(found, changed)


def test_the_number_of_steps_of_the_optimizer_goes_on_with_other_rates(full, tmp_path):
    """Adam corrects its moments by it: counted again, the first steps would be many times too large."""
    assert full.go_on(tmp_path, {"lr": 5e-4}).steps == {4.0}


def test_nothing_is_logged_of_a_run_that_goes_on_as_it_was(full, tmp_path):
    found = full.go_on(tmp_path, {})
    assert [line for line in found.warnings if line.startswith("from step")] == []
    assert found.run.column("lm loss") == full.run.column("lm loss")


@pytest.mark.parametrize(
    "record",
    ["{", "[]", "{}", '{"task": "sft", "arguments": []}', '{"task": "sft", "arguments": {}, "weights": {"base": 5}}'],
)
def test_a_record_that_is_damaged_is_said_and_ends_no_run(full, tmp_path, record):
    """A checkpoint whose files are not those that were written is passed over where another is whole."""
    found = full.go_on(tmp_path, {}, record=record)
    assert (found.run.exit_code, retry_class(found.run.exit_code)) != (ExitCode.ERROR, "retry"), found.run.message
    told = [*found.warnings, *found.run.message.splitlines()]
    assert any("args.json" in line for line in told), told


def test_another_layout_is_logged_too_and_goes_on_with_the_same_losses(full, tmp_path):
    changed = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
    found = full.go_on(tmp_path, changed, ranks=2)
    assert same_loss(found, full.run)
    assert_logged(found, changed)


def test_another_optimizer_goes_on_without_the_saved_state_when_asked_to(full, tmp_path):
    changed = {"optimizer": "sgd", "use_distributed_optimizer": False, "no_load_optim": True}
    found = full.go_on(tmp_path, changed)
    assert (found.run.exit_code, found.run.message) == (0, "")
    assert found.run.column("lm loss")[2] == full.run.column("lm loss")[2]
    assert_logged(found, {"optimizer": "sgd"})


@pytest.mark.parametrize(
    ("changed", "before"),
    [
        (
            {"optimizer": "sgd", "use_distributed_optimizer": False},
            {"optimizer": "adam", "use_distributed_optimizer": True},
        ),
        ({"use_distributed_optimizer": False}, {"use_distributed_optimizer": True}),
        ({"freeze_parameters_ratio": 0.5}, {"freeze_parameters_ratio": 0.0}),
        ({"train_type": "lora", "lora_rank": 2}, {"train_type": "full", "lora_rank": 8}),
        ({"norm_epsilon": 1e-3, "rotary_base": 500}, {"norm_epsilon": None, "rotary_base": None}),
    ],
    ids=name_of,
)
def test_what_cannot_change_is_refused_with_both_values_all_at_once_and_never_retried(full, tmp_path, changed, before):
    assert_refused(full, full.go_on(tmp_path, changed), changed, before)


def assert_refused(base, found, changed, before):
    assert found.run.exit_code == ExitCode.CHECKPOINT_INCOMPATIBLE
    assert retry_class(found.run.exit_code) == "never"
    for name, value in changed.items():
        shown = "unset" if before[name] is None else repr(before[name])
        line = next(line for line in found.run.message.splitlines() if f"spec.args.{name}:" in line)
        assert f"was saved with {shown}, which" in line
        assert line.endswith(f"(got {value!r})")
    assert len(found.run.message.splitlines()) == len(changed)
    assert [path.name for path in found.run.folder.glob("iter_*")] == ["iter_0000002"], "nothing is lost"
    assert found.run.log == base.run.log


def test_a_run_of_another_task_or_of_another_model_does_not_go_on(full, model_root, tmp_path):
    found = full.go_on(tmp_path / "task", {}, task="pt")
    assert found.run.exit_code == ExitCode.CHECKPOINT_INCOMPATIBLE
    assert "spec.task" in found.run.message
    assert "was saved with 'sft'" in found.run.message
    wide = tiny_model.make("llama", model_root, num_hidden_layers=2, intermediate_size=192)
    found = full.go_on(tmp_path / "model", {"model": str(wide)})
    assert found.run.exit_code == ExitCode.CHECKPOINT_INCOMPATIBLE
    assert "intermediate_size (config.json)" in found.run.message
    assert "was saved with 128" in found.run.message
    assert "(got 192)" in found.run.message


def test_adapters_go_on_with_other_rates_and_dropout(lora, tmp_path):
    changed = {"lr": 5e-4, "lora_dropout": 0.5}
    found = lora.go_on(tmp_path, changed)
    assert (found.run.exit_code, found.run.message) == (0, "")
    assert follows(peak=5e-4)(found, None)
    assert found.run.column("lm loss")[2] != lora.run.column("lm loss")[2]
    assert_logged(found, changed)


@pytest.fixture(scope="module")
def other_weights(model_root):
    """A model of the same config, names, shapes and sizes."""
    return {"model": str(tiny_model.make("llama", model_root, num_hidden_layers=2, seed=2))}


def test_adapters_do_not_go_on_upon_the_weights_of_another_model(lora, tmp_path, other_weights):
    found = lora.go_on(tmp_path, other_weights)
    assert found.run.exit_code == ExitCode.CHECKPOINT_INCOMPATIBLE
    line = next(line for line in found.run.message.splitlines() if "spec.args.model (weights of the base):" in line)
    assert f"was saved with '{lora.given['model']} (sha256 " in line
    assert f"(got '{other_weights['model']} (sha256 " in line


def test_a_run_of_all_parameters_goes_on_from_its_checkpoint_whatever_the_model_folder_holds_now(
    full, tmp_path, other_weights
):
    found = full.go_on(tmp_path, other_weights)
    assert same_loss(found, full.run)
    assert any("; training continues from the checkpoint's weights" in line for line in found.warnings)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_model_that_was_moved_is_the_same_model(kind, request, tmp_path):
    run = request.getfixturevalue(kind)
    moved = shutil.copytree(run.given["model"], tmp_path / "moved")
    found = run.go_on(tmp_path, {"model": str(moved)})
    assert same_loss(found, run.run)
    assert [line for line in found.warnings if "weights" in line] == []


def test_a_finished_run_of_another_model_is_no_success_without_a_step(full, tmp_path, other_weights):
    found = full.go_on(tmp_path / "other", other_weights, is_finished=True)
    assert found.run.exit_code == ExitCode.CHECKPOINT_INCOMPATIBLE
    assert "spec.args.model (weights of the base):" in found.run.message
    assert "already has all steps of this run" in found.run.message
    same = full.go_on(tmp_path / "same", {"lr": 5e-4}, is_finished=True)
    assert (same.run.exit_code, same.run.message) == (0, "")
    assert "all steps are already done, so these have no effect: lr was 0.001, is 0.0005" in same.warnings


def test_adapters_upon_a_loaded_base_go_on_upon_that_base(full, tmp_path_factory, tmp_path):
    folder = tmp_path_factory.mktemp("upon")
    upon = base(Path(full.given["model"]), folder, **LORA, load=str(full.run.folder))
    found = upon.go_on(tmp_path / "same", {})
    assert same_loss(found, upon.run)
    refused = upon.go_on(tmp_path / "other", {"load": None})
    assert refused.run.exit_code == ExitCode.CHECKPOINT_INCOMPATIBLE
    assert "spec.args.model (weights of the base):" in refused.run.message


def test_a_run_goes_on_without_the_checkpoint_that_it_started_from(full, tmp_path_factory, tmp_path):
    start = shutil.copytree(full.run.folder, tmp_path / "start")
    folder = tmp_path_factory.mktemp("started")
    run = base(Path(full.given["model"]), folder, load=str(start), finetune=True)
    shutil.rmtree(start)
    assert same_loss(run.go_on(tmp_path / "on", {}), run.run)


def test_adapters_go_on_where_load_is_the_folder_of_the_run(full, tmp_path_factory, tmp_path):
    folder = tmp_path_factory.mktemp("own")
    own = {"load": str(folder / "run"), "exit_on_missing_checkpoint": False}
    run = base(Path(full.given["model"]), folder, **LORA, **own)
    assert same_loss(run.go_on(tmp_path, {"load": str(tmp_path / "run")}), run.run)


@pytest.mark.parametrize(
    "changed",
    [{"lora_rank": 2, "lora_alpha": 32}, {"target_modules": ["linear_fc1"], "use_rslora": True}],
    ids=name_of,
)
def test_adapters_of_another_shape_or_scale_are_refused(lora, tmp_path, changed):
    before = {**LORA, "target_modules": ["all-linear"], "use_rslora": False}
    assert_refused(lora, lora.go_on(tmp_path, changed), changed, before)


def test_experts_go_on_with_other_losses_and_capacity(model_root, tmp_path_factory, tmp_path):
    model = tiny_model.make("qwen3_moe", model_root, num_hidden_layers=2)
    experts = base(model, tmp_path_factory.mktemp("experts"), global_batch_size=2)
    changed = {"moe_aux_loss_coeff": 0.1, "moe_z_loss_coeff": 0.1, "moe_router_dtype": "fp64"}
    changed |= {"moe_router_load_balancing_type": "aux_loss", "moe_expert_capacity_factor": 1.0}
    found = experts.go_on(tmp_path / "losses", changed)
    assert (found.run.exit_code, found.run.message) == (0, "")
    assert found.run.column("grad_norm")[2] != experts.run.column("grad_norm")[2]
    assert_logged(found, changed)
    changed = {"moe_router_topk": 3}
    assert_refused(experts, experts.go_on(tmp_path / "topk", changed), changed, {"moe_router_topk": None})


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
