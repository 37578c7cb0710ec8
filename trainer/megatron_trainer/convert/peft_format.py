"""Names and settings in a PEFT adapter directory. Pure: no tensors, no files."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Literal

from megatron_trainer.failure import InvalidInput
from megatron_trainjob.args import head
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.families.weights import in_files
from megatron_trainjob.violation import Violation

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
DECODER = "model."
DEFAULTS: Mapping[str, object] = {"peft_type": None, "r": 8, "lora_alpha": 8}
"""PEFT's defaults of missing keys in adapter_config.json; all others are off."""

Half = Literal["A", "B"]
HALVES: tuple[Half, ...] = ("A", "B")


def half_key(module: str, half: Half, *, is_embedding: bool) -> str:
    """The tensor that holds A or B of a Hugging Face module."""
    return f"{PREFIX}{module}.lora_embedding_{half}" if is_embedding else f"{PREFIX}{module}.lora_{half}.weight"


def below_decoder(name: str) -> str:
    """The name of a tensor or module in a model that is only a decoder (AutoModel), such as an embedding model."""
    return name.replace(f"{PREFIX}{DECODER}", PREFIX, 1) if name.startswith(PREFIX) else name.removeprefix(DECODER)


def with_decoder(key: str) -> str:
    """The name of such a tensor in a model with more than a decoder."""
    return key if key.startswith(f"{PREFIX}{DECODER}") else key.replace(PREFIX, f"{PREFIX}{DECODER}", 1)


def in_model(name: str, *, has_tower: bool) -> str:
    """The name of a tensor or module within transformers' object, where a model with images nests both its parts."""
    prefix = PREFIX if name.startswith(PREFIX) else ""
    return prefix + in_files(name.removeprefix(prefix), nested=has_tower)


def full_key(name: str, adapted_modules: Iterable[str]) -> str:
    """The tensor that holds a parameter trained in full; PEFT stores those of an adapted module one level down."""
    module, own_name = name.rsplit(".", 1)
    return f"{PREFIX}{module}.base_layer.{own_name}" if module in adapted_modules else f"{PREFIX}{name}"


def config(
    args: TrainArgs,
    *,
    rank: int,
    base_model: str,
    target_modules: Iterable[str],
    target_parameters: Iterable[str] = (),
    modules_to_save: Iterable[str],
) -> dict[str, object]:
    """The content of adapter_config.json. rank: of the widest adapter, with the scale for the run's own rank.

    target_parameters: adapted as parameters, with which peft loads no dropout, not even for inference.
    """
    as_parameters = sorted(target_parameters)
    if args.task_type == "embedding":
        target_modules, modules_to_save = (map(below_decoder, names) for names in (target_modules, modules_to_save))
    wider = rank / args.lora_rank
    alpha = args.lora_alpha * (math.sqrt(wider) if args.use_rslora else wider)
    return {
        "base_model_name_or_path": base_model,
        "bias": args.lora_bias,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0 if as_parameters else args.lora_dropout,
        "modules_to_save": sorted(modules_to_save) or None,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted(target_modules),
        **({"target_parameters": as_parameters} if as_parameters else {}),
        "task_type": _peft_task(args),
        "use_rslora": args.use_rslora,
    }


def _peft_task(args: TrainArgs) -> str:
    if args.task_type == "embedding":
        return "FEATURE_EXTRACTION"
    return "SEQ_CLS" if head.has_scores(args) else "CAUSAL_LM"


def shortest_targets(adapted: frozenset[str], every: frozenset[str]) -> frozenset[str]:
    """The shortest target_modules that select exactly the adapted modules.

    The last part of a name selects all modules of the model that end in it, so it is used where all of them are
    adapted; otherwise full names are used. every: the names of all modules with weights.
    """
    last = {name: name.rsplit(".", 1)[-1] for name in every}
    partly = {last[name] for name in every - adapted}
    return frozenset(name if last[name] in partly or last[name].isdigit() else last[name] for name in adapted)


def mistaken_for_experts(adapted: frozenset[str]) -> str:
    """The adapted modules that peft would not load, each named once; empty if it loads all.

    transformers 5 fuses experts, and peft converts every target whose last part matches an expert's linear to the fused
    one, including the linears of shared experts and dense layers.
    """
    experts = {name.rsplit(".", 1)[-1] for name in adapted if ".experts." in name}
    others = (name for name in adapted if ".experts." not in name)
    return ", ".join(sorted({layer_of(name) for name in others if name.rsplit(".", 1)[-1] in experts}))


def check(found: Mapping[str, object], args: TrainArgs, directory: str) -> None:
    """Returns if an adapter with this adapter_config.json is equivalent to one of this run.

    Raises InvalidInput with everything that differs or that only PEFT supports.
    """
    expected = {
        "peft_type": ("LORA", None),
        "r": (args.lora_rank, "lora_rank"),
        "lora_alpha": (args.lora_alpha, "lora_alpha"),
        "use_rslora": (args.use_rslora, "use_rslora"),
        "use_dora": (False, None),
        "fan_in_fan_out": (False, None),
        "rank_pattern": ({}, None),
        "alpha_pattern": ({}, None),
    }
    problems = []
    for key, (value, argument) in expected.items():
        actual = found.get(key, DEFAULTS.get(key, value))
        if (actual or None) != (value or None):
            remedy = (
                f"set {argument} to {actual}"
                if argument
                else "merge it into the model with PEFT and continue from that"
            )
            message = f"{CONFIG_FILE} says {key} is {actual!r}, this run's adapters have {value!r}; {remedy}"
            problems.append(Violation(path="spec.args.adapter_load", value=directory, message=message))
    if problems:
        raise InvalidInput(tuple(problems))


def layer_of(key: str) -> str:
    """A key without its layer and expert numbers, for messages that name each kind of tensor once."""
    return re.sub(r"\.\d+\.", ".*.", key.removeprefix(PREFIX))
