"""Names and settings in a PEFT adapter directory. Pure: no tensors, no files."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Literal

from megatron_trainer.failure import InvalidInput
from megatron_trainjob.args import head
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.families.vision import Names
from megatron_trainjob.families.weights import outside
from megatron_trainjob.violation import Violation

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
DECODER = "model."
DEFAULTS: Mapping[str, object] = {"peft_type": None, "r": 8, "lora_alpha": 8}
"""PEFT's defaults of missing keys in adapter_config.json; all others are off."""

_DOWN = ("down_proj", "w2")
"""Names of an expert's second linear."""
_GATE_AND_UP = r".*\.gate_up_proj"
"""The fused gate and up of experts, as a pattern of peft's."""

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


def in_model(name: str, *, names: Names) -> str:
    """The name of a tensor or module within transformers' object. names: of its parts, () for a text model."""
    prefix = PREFIX if name.startswith(PREFIX) else ""
    return prefix + outside(f"{name.removeprefix(prefix)}.", names).removesuffix(".")


def full_key(name: str, adapted_modules: Iterable[str]) -> str:
    """The tensor that holds a parameter trained in full; PEFT stores those of an adapted module one level down."""
    module, own_name = name.rsplit(".", 1)
    return f"{PREFIX}{module}.base_layer.{own_name}" if module in adapted_modules else f"{PREFIX}{name}"


def config(
    args: TrainArgs,
    adapted: frozenset[str],
    every: frozenset[str],
    *,
    rank: int,
    base_model: str,
    modules_to_save: Iterable[str],
    target_parameters: Iterable[str] = (),
) -> dict[str, object]:
    """The content of adapter_config.json. rank: of the widest adapter, with the scale for the run's own rank.

    adapted, every: the names of the adapted modules, and of all modules with weights. target_parameters: adapted as
    parameters of their own. peft refuses dropout beside fused experts, which only training applies, so it is left out.
    """
    as_parameters = sorted(target_parameters)
    if args.task_type == "embedding":
        adapted, every, modules_to_save = (
            frozenset(map(below_decoder, names)) for names in (adapted, every, modules_to_save)
        )
    wider = rank / args.lora_rank
    alpha = args.lora_alpha * (math.sqrt(wider) if args.use_rslora else wider)
    alpha = int(alpha) if alpha == int(alpha) else alpha
    return {
        "base_model_name_or_path": base_model,
        "bias": args.lora_bias,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": alpha,
        "lora_dropout": 0.0 if as_parameters or any(map(_is_of_expert, adapted)) else args.lora_dropout,
        "modules_to_save": sorted(modules_to_save) or None,
        "peft_type": "LORA",
        "r": rank,
        **_targets(adapted, every, rank, alpha, of_root=args.use_rslora),
        **({"target_parameters": as_parameters} if as_parameters else {}),
        "task_type": _peft_task(args),
        "use_rslora": args.use_rslora,
    }


def _targets(
    adapted: frozenset[str], every: frozenset[str], rank: int, alpha: float, *, of_root: bool
) -> dict[str, object]:
    """The keys that select the adapted modules, and the ranks of those that transformers fuses.

    transformers 5 fuses experts, and peft converts every target module whose last part is that of an expert's linear to
    the fused parameter, those of shared experts and dense layers too. Where a model has both, neither is a target
    module: all are named as parameters, the fused gate and up with the rank that peft gives them. peft reads those as
    the inner of two adapters, so the outer one (down) is named with them and, if absent from the file, stays zero.

    of_root: the scale is alpha over the root of the rank, for which peft would double alpha too.
    """
    experts = frozenset(filter(_is_of_expert, adapted))
    alike = {_last(name) for name in experts}
    is_mistaken = any(_last(name) in alike and not _is_of_expert(name) for name in every)
    has_down = bool(alike & set(_DOWN))
    if not experts or not (is_mistaken or of_root or not has_down):
        return {"target_modules": sorted(shortest_targets(adapted, every))}
    fused = {f"{_fused(name)}.{part}" for name in experts for part in _parts(alike)}
    beside = {name for name in adapted - experts if _last(name) in alike}
    return {
        "target_modules": sorted(shortest_targets(adapted - experts - beside, every)),
        "target_parameters": sorted(fused | {f"{name}.weight" for name in beside}),
        "rank_pattern": {_GATE_AND_UP: 2 * rank},
        "alpha_pattern": {_GATE_AND_UP: _of_twice_the_rank(alpha, of_root=of_root)},
    }


def _of_twice_the_rank(alpha: float, *, of_root: bool) -> float:
    return alpha * (math.sqrt(2) if of_root else 2)


def _fused(name: str) -> str:
    """The module of transformers into which the linear of an expert is fused."""
    return name.rsplit(".", 2)[0].replace(".block_sparse_moe.", ".mlp.")


def _parts(linears: set[str]) -> list[str]:
    """The parameters of fused experts with adapters of these linears."""
    return ["down_proj", *(["gate_up_proj"] if linears - set(_DOWN) else [])]


def _is_of_expert(name: str) -> bool:
    return ".experts." in name


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


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


def check(found: Mapping[str, object], args: TrainArgs, directory: str) -> None:
    """Returns if an adapter with this adapter_config.json is equivalent to one of this run.

    Raises InvalidInput with everything that differs or that only PEFT supports.
    """
    fused_alpha = _of_twice_the_rank(args.lora_alpha, of_root=args.use_rslora)
    expected = {
        "peft_type": ("LORA", None),
        "r": (args.lora_rank, "lora_rank"),
        "lora_alpha": (args.lora_alpha, "lora_alpha"),
        "use_rslora": (args.use_rslora, "use_rslora"),
        "use_dora": (False, None),
        "fan_in_fan_out": (False, None),
        "rank_pattern": ({_GATE_AND_UP: 2 * args.lora_rank} if found.get("rank_pattern") else {}, None),
        "alpha_pattern": ({_GATE_AND_UP: fused_alpha} if found.get("alpha_pattern") else {}, None),
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
