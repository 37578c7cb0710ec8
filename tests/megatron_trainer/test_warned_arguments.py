"""What is accepted with a warning changes nothing: megatron-core and the data get the same settings without it."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import megatron_trainer
from megatron_trainer.backend import CpuBackend
from megatron_trainer.data.settings import data_settings, row_shape
from megatron_trainer.models.settings import transformer_config
from megatron_trainer.models.spec import read_model
from megatron_trainer.train.optim import optimizer_config
from megatron_trainjob.args import derive
from megatron_trainjob.args.parse import task_defaults
from megatron_trainjob.args.rules import RULES
from megatron_trainjob.args.tree import ARGUMENTS, TrainArgs
from tests.support.arguments.rule_cases import CASES
from tests.support.models.tiny_model import config_of

WITH_EFFECT = ("adapters_of_predicting_layers_need_a_merged_model", "rows_split_off_are_evaluated") + (
    "the_words_about_tools_are_our_own",
)
"""These warn of what a value does: layers that PEFT does not load, rows without use, a system prompt of our own."""
WARNED = [
    case
    for case in CASES
    if RULES[case.rule].severity == "warning"
    and case.task != "export"
    and RULES[case.rule].about[0] != "model"
    and case.rule not in WITH_EFFECT
]
"""A warning about the model is about its config.json, not about an argument."""
IDS = [f"{case.rule}-{index}" for index, case in enumerate(WARNED)]
OTHERS = [
    ({"moe_token_dispatcher_type": "flex"}, "moe_token_dispatcher_type"),
    ({"moe_token_dispatcher_type": "alltoall_seq"}, "moe_token_dispatcher_type"),
    ({"moe_enable_deepep": True}, "moe_enable_deepep"),
    ({"fp8_format": "hybrid", "fp8_param_gather": True}, "fp8_param_gather"),
    ({"apply_query_key_layer_scaling": True}, "apply_query_key_layer_scaling"),
    ({"attention_softmax_in_fp32": False}, "attention_softmax_in_fp32"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """config.json of a dense model and of one with experts, without weights."""
    made = {}
    for name in ("llama", "qwen3_moe"):
        made[name] = tmp_path_factory.mktemp(name)
        (made[name] / "config.json").write_text(json.dumps(config_of(name).to_dict(), default=str))
    return made


def settings(folder, values: dict[str, Any], task: str = "sft") -> list[object]:
    """Everything that megatron-core and the loader are told."""
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    args = TrainArgs(**{**task_defaults(task), "model": str(folder), "dataset": ("d",), "train_iters": 4, **values})
    spec = read_model(folder, args)
    model = {
        name: value
        for name, value in dataclasses.asdict(transformer_config(spec, args, CpuBackend())).items()
        if not callable(value)
    }
    optimizer = dataclasses.asdict(optimizer_config(args, torch.float32, 1e-4))
    if args.optimizer == "sgd":
        optimizer = {name: value for name, value in optimizer.items() if not name.startswith("adam_")}
    else:
        optimizer.pop("sgd_momentum")
    others = {"muon": ("lion_",), "lion": ("muon_", "adam_")}
    optimizer = {
        name: value
        for name, value in optimizer.items()
        if not name.startswith(others.get(args.optimizer.removeprefix("dist_"), ("muon_", "lion_")))
    }
    if args.tensor_model_parallel_size == 1 or args.decoupled_lr is None:
        optimizer.pop("muon_tp_mode", None)
        optimizer.pop("decoupled_min_lr", None)
    if args.train_type == "lora":  # neither embedding nor output layer trains in these cases
        optimizer.pop("decoupled_lr", None)
    if args.fp8_format is None:
        model = {name: value for name, value in model.items() if not name.startswith("fp8_")}
    elif args.fp8_recipe != "delayed":
        model = {name: value for name, value in model.items() if not name.startswith("fp8_amax")}
    return [model, optimizer, row_shape(args, pad_id=0), reading(args, task)]


def reading(args: TrainArgs, task: str) -> dict[str, Any]:
    """How the data is read, without what belongs to another way of reading."""
    told = dataclasses.asdict(data_settings(args, task=task, max_length=64))
    if args.streaming:
        told["num_workers"], told["order"] = derive.num_workers(args), derive.dataloader_type(args)
    if not args.streaming or not args.dataset_shuffle:
        told.pop("window_rows")
    if not args.val_dataset:
        told.pop("shuffle_validation", None)
    if derive.eval_strategy(args) == "no":
        told.pop("val_datasets")
        told.pop("cached_validation")
        told.pop("shuffle_validation", None)
    if args.interleave_prob is None:
        told.pop("stopping_strategy", None)
    return {**told, "max_length": derive.max_length(args, {})}


@pytest.mark.parametrize("case", WARNED, ids=IDS)
def test_an_argument_with_a_warning_changes_no_setting(folders, case):
    blamed = next(name for name in RULES[case.rule].about if name in case.bad)
    folder = folders["qwen3_moe" if case.config and "num_experts" in (case.bad_config or case.config) else "llama"]
    without = {name: value for name, value in case.bad.items() if name != blamed}
    if blamed == "recompute_modules" and case.config:  # the one module is lacking, not the whole list idle
        without[blamed] = ()
    assert settings(folder, case.bad, case.task) == settings(folder, without, case.task)


@pytest.mark.parametrize(("values", "name"), OTHERS, ids=[f"{name}-{index}" for index, (_, name) in enumerate(OTHERS)])
def test_an_argument_without_effect_changes_no_setting(folders, values, name):
    without = {key: value for key, value in values.items() if key != name}
    folder = folders["llama" if "fp8_format" in values else "qwen3_moe"]
    assert settings(folder, values) == settings(folder, without)


def test_no_module_of_the_trainer_reads_an_argument_without_effect():
    text = "\n".join(file.read_text() for file in Path(megatron_trainer.__file__).parent.rglob("*.py"))
    idle = [name for name, argument in ARGUMENTS.items() if argument.status == "no effect"]
    assert [name for name in idle if re.search(rf"args\.{name}\b", text)] == []
    assert len(idle) > 15
