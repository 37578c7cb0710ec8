"""Commands that users of ms-swift start from, scaled down to one rank and a tiny model: each trains three steps.

GPU-only arguments are left aside, and so is the layout: what is shown is that the rest of a command runs as it stands.
"""

import json

import pytest

from megatron_operator.cli import from_args
from megatron_trainjob.args.tree import ARGUMENTS
from tests.support.arguments.command_table import COMMANDS, VERSIONS, outcome, script
from tests.support.models import tiny_model

pytestmark = [pytest.mark.dist, pytest.mark.slow]
LAYOUT = ("tensor_", "pipeline_", "context_", "expert_", "decoder_", "sequence_parallel")
# What names the files, the size or the length of the real run.
OF_THE_RUN = frozenset(
    {
        "model",
        "load",
        "dataset",
        "val_dataset",
        "cached_dataset",
        "cached_val_dataset",
        "use_hf",
        "max_length",
        "finetune",
    }
    | {"packing_length", "train_iters", "max_epochs", "global_batch_size", "micro_batch_size", "dataset_num_proc"}
    | {"num_workers", "system", "streaming", "new_special_tokens", "modules_to_save", "model_type", "num_experts"}
    | {
        "recompute_num_layers",
        "moe_router_topk",
        "attention_backend",
        "eval_iters",
        "lr_warmup_iters",
        "lr_decay_iters",
    }
)
# Numbers in which commands differ although they run the same way.
NUMBERS = frozenset(
    {"lr", "min_lr", "lr_warmup_fraction", "save_interval", "eval_interval", "log_interval", "split_dataset_ratio"}
    | {"lora_rank", "lora_alpha", "moe_aux_loss_coeff", "model_author", "model_name", "no_save_optim", "no_save_rng"}
)


def scaled(command: dict) -> dict:
    """The arguments of the command that say how it trains."""
    source = from_args.read(script(command))
    written, _ = from_args.translated(source, source.launches[0], version=VERSIONS[command["version"]])
    given = written.manifest["spec"]["args"]
    kept = {
        name: value
        for name, value in given.items()
        if name not in OF_THE_RUN
        and not name.startswith(LAYOUT)
        and ARGUMENTS[name].status != "works on GPU only"
        and not name.startswith(("wandb", "tensorboard"))
    }
    if kept.get("recompute_granularity") == "full":
        kept["recompute_num_layers"] = 1
    return kept


def distinct() -> dict[str, tuple[str, bool, dict]]:
    """name -> (task, whether the model has experts, arguments) of text commands that differ when scaled down."""
    found = {}
    for command in COMMANDS:
        settings = command["settings"]
        is_text = not any(
            part in str(settings) for part in ("VL", "Omni", "InternVL", "GLM-4.5V", "4.6V", "gemma", "npu")
        )
        if command["command"] not in ("sft", "pt") or not is_text or "task_type" in settings:
            continue
        if outcome(command).problems:
            continue
        arguments = scaled(command)
        has_experts = any(name.startswith(("moe_", "expert_")) for name in settings)
        shape = {name: value for name, value in arguments.items() if name not in NUMBERS}
        key = json.dumps([has_experts, shape], sort_keys=True)
        found.setdefault(key, (f"{command['version']}-{command['name']}", (command["command"], has_experts, arguments)))
    return dict(found.values())


RUNS = distinct()


@pytest.mark.parametrize("name", RUNS)
def test_a_scaled_command_trains_three_steps(train, model_root, name):
    task, has_experts, arguments = RUNS[name]
    model = str(tiny_model.make("qwen3_moe", model_root)) if has_experts else None
    given = {"train_iters": 3, "max_length": 256, **({"model": model} if model else {}), **arguments}
    run = train(task=task, **given)
    assert run.exit_code == 0, run.message
    assert len(run.column("lm loss")) >= 1
