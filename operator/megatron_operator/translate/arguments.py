"""Translates arguments of ms-swift to our names, and adds what a version's different defaults require.

Nothing that would change the training is dropped: what is unknown or refused stays in place, with the reason
next to it, so that validation fails there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from megatron_operator.translate import elsewhere
from megatron_operator.translate.shell.literal import plain, plain_value
from megatron_operator.translate.shell.nodes import is_evaluated
from megatron_trainjob.args.availability import objection
from megatron_trainjob.args.field import Argument, Task
from megatron_trainjob.args.names import explain_unknown, explain_value, find_alias
from megatron_trainjob.args.parse import parse
from megatron_trainjob.args.pixels import TOKENS, VARIABLES, value_of
from megatron_trainjob.args.rules.data import PLACES
from megatron_trainjob.args.tree import ARGUMENTS, OF_VARIABLES
from megatron_trainjob.args.value import WrongValue, from_text, read_value

Version = Literal["3.8", "3.9", "4"]
VERSIONS: tuple[Version, ...] = ("3.8", "3.9", "4")

NAMES_OF_3 = frozenset(
    {"save", "save_interval", "eval_interval", "log_interval", "load", "adapter_load", "max_epochs", "num_workers"}
) | {"train_type", "distributed_backend", "ref_load", "ref_adapter_load"}
# Defaults of version 4 that differ from this project's.
DEFAULTS_OF_4: dict[str, object] = {
    "finetune": True,
    "recompute_granularity": "none",
    "cross_entropy_loss_fusion": True,
    "calculate_per_token_loss": False,
    "padding_free": False,
    "save_safetensors": True,
}
EXPERT_DEFAULTS: dict[Version, dict[str, object]] = {
    "3.8": {},
    "3.9": {"expert_tensor_parallel_size": 1},
    "4": {"expert_tensor_parallel_size": 1, "moe_grouped_gemm": True},
}
NOT_CARRIED = "NOT CARRIED OVER"
FILL_IN = "FILL IN"
SHELL_ALONE = "contains a variable or command that only a running shell can evaluate; write its value"
AS_IT_IS = "begins a name with $ that no shell replaces here, and no path does; write its value"
NO_VALUE = "has no value; write one, or remove it"
FP8_OF_EXPORT: Mapping[str, object] = {"fp8_format": "e4m3", "fp8_recipe": "blockwise", "fp8_param_gather": True}
"""With these ms-swift 4.x writes the weights that quant_method: fp8 writes here."""
OF_TOKENS = "ms-swift uses the number of tokens"
SECRETS = "is a secret: pass HF_TOKEN to the pods from a Secret (spec.envFrom)"


@dataclass(frozen=True, kw_only=True)
class Carried:
    """One argument of the new manifest, with a remark for the reader."""

    name: str
    value: object
    remark: str = ""


@dataclass(frozen=True, kw_only=True)
class Translated:
    """arguments: for spec.args. left_out: (name, value, reason) of what has no counterpart and no effect."""

    arguments: tuple[Carried, ...]
    left_out: tuple[tuple[str, object, str], ...]
    version: Version


def translate(
    written: Mapping[str, object], task: Task, *, version: Version | None = None, world_size: int | None = None
) -> Translated:
    """The arguments of an ms-swift command. Without a version, it is inferred from names and layout."""
    kept, left_out = [], []
    settings, remarks = elsewhere.in_our_places(_without_nulls(_quantized(written, task), task), task)
    for name, value in settings.items():
        carried = _carried(name, value, task)
        if reason := _needless(name, value, task, settings):
            left_out.append((name, value, reason))
        elif carried.name == "hub_token":
            left_out.append((name, "(hidden)", SECRETS))
        else:
            is_told = name in remarks and not carried.remark.startswith(NOT_CARRIED)
            kept.append(replace(carried, remark=remarks[name]) if is_told else carried)
    values = {each.name: each.value for each in kept}
    kept = list(_without_answered(kept, values, task))
    version = version or told_version(written, values, task, world_size)
    added = [] if task == "export" else list(_defaults(values, task, version))
    return Translated(arguments=(*kept, *added), left_out=tuple(left_out), version=version)


def _without_answered(kept: Iterable[Carried], values: Mapping[str, object], task: Task) -> Iterator[Carried]:
    """The arguments; one that is refused by itself is not where the others ask for the same."""
    problems = {each.path.rpartition(".")[2] for each in parse(values, task=task).violations}
    for each in kept:
        argument = ARGUMENTS.get(each.name)
        is_answered = argument is not None and argument.status == "refused" and each.name not in problems
        is_marked = each.remark.startswith(NOT_CARRIED) and is_evaluated(str(each.value))
        yield replace(each, remark="") if is_answered and is_marked else each


def _needless(name: str, value: object, task: Task, settings: Mapping[str, object]) -> str:
    if elsewhere.is_own_reference(name, value, settings):
        return elsewhere.SAME_REFERENCE
    return elsewhere.needless(name, value, task)


def _quantized(written: Mapping[str, object], task: Task) -> Mapping[str, object]:
    """The arguments of an export in FP8 under the name that they have here."""
    asked = {name: str(written.get(name)).lower() for name in FP8_OF_EXPORT}
    if task != "export" or asked != {name: str(value).lower() for name, value in FP8_OF_EXPORT.items()}:
        return written
    return {name: value for name, value in written.items() if name not in FP8_OF_EXPORT} | {"quant_method": "fp8"}


def _without_nulls(written: Mapping[str, object], task: Task) -> dict[str, object]:
    """A null of a configuration is no argument where nothing is the default here too; no recomputation has a word."""
    left: dict[str, object] = {}
    for name, value in written.items():
        alias = find_alias(name, task)
        argument = ARGUMENTS.get(alias.canonical if alias else name)
        if value is None and name == "recompute_granularity":
            left[name] = "none"
        elif value is not None or argument is None or argument.default is not None:
            left[name] = value
    return left


def of_variables(environment: Mapping[str, str], task: Task) -> dict[str, object]:
    """The arguments that ms-swift takes from the environment."""
    found = {OF_VARIABLES[name]: value for name, value in environment.items() if name in OF_VARIABLES}
    arguments: dict[str, object] = {
        name: value.lower() in ("1", "true", "t", "yes", "y", "on") if ARGUMENTS[name].type == "bool" else value
        for name, value in found.items()
        if task in ARGUMENTS[name].applies_to
    }
    others = {name for name, _, _ in outvoted(environment, {})}
    sizes = {VARIABLES[name]: value for name, value in environment.items() if name in VARIABLES and name not in others}
    read = {name: value if (known := value_of(name, value)) is None else known for name, value in sizes.items()}
    return arguments | ({"model_kwargs": read} if read else {})


def with_variables(values: Mapping[str, object], variables: Mapping[str, object]) -> dict[str, object]:
    """The arguments of a command and of its environment; where both have a setting, the command's is used."""
    written, own = {**variables, **values}, _own_sizes(values)
    if "model_kwargs" in variables and own:
        given = _mapping(variables["model_kwargs"])
        left = {name: number for name, number in given.items() if name not in _outvoted(own)}
        written["model_kwargs"] = {**left, **own}
    return written


def _own_sizes(values: Mapping[str, object]) -> dict[str, object]:
    """model_kwargs of the command by names in lower case; {} for what is none, of which translate has the reason."""
    with suppress(WrongValue):
        own = read_value(ARGUMENTS["model_kwargs"], values.get("model_kwargs") or {})
        return {str(name).lower(): value for name, value in _mapping(own).items()}
    return {}


def outvoted(environment: Mapping[str, str], values: Mapping[str, object]) -> list[tuple[str, object, str]]:
    """(variable, value, reason) of sizes in pixels beside one in tokens, which ms-swift uses alone."""
    names = _outvoted({*map(str.lower, environment), *_own_sizes(values)})
    return [(name.upper(), environment[name.upper()], OF_TOKENS) for name in names if name.upper() in environment]


def _outvoted(given: Collection[str]) -> list[str]:
    return [pixels for tokens, pixels in TOKENS.items() if tokens in given]


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def told_version(
    written: Mapping[str, object], values: Mapping[str, object], task: Task, world_size: int | None
) -> Version:
    """Infers the version from names. Version 3.9 has the names of 3.8, but does not split experts by default."""
    other_names = {name for name in written if (alias := find_alias(name, task)) and alias.canonical in NAMES_OF_3}
    if other_names or "save_safetensors" in written:
        return "4"
    split = parse(values, task=task, world_size=world_size)
    whole = parse({**values, "expert_tensor_parallel_size": 1}, task=task, world_size=world_size)
    fits_whole_only = len(whole.violations) < len(split.violations)
    return "3.9" if fits_whole_only and "expert_tensor_parallel_size" not in values else "3.8"


def _carried(name: str, value: object, task: Task) -> Carried:
    """The argument, its text as the program receives it."""
    carried = _of_shell(name, value, task)
    read = plain_value(carried.value)
    is_path = carried.name in PLACES and not carried.remark.startswith(NOT_CARRIED) and read != carried.value
    return replace(carried, value=read, remark=f"{NOT_CARRIED}: {AS_IT_IS}" if is_path else plain(carried.remark))


def _of_shell(name: str, value: object, task: Task) -> Carried:
    alias = find_alias(name, task)
    argument = ARGUMENTS.get(alias.canonical if alias else name)
    if value is None:
        return Carried(name=argument.name if argument else name, value=value, remark=f"{NOT_CARRIED}: {NO_VALUE}")
    if argument is None:
        return Carried(name=name, value=value, remark=f"{NOT_CARRIED}: {explain_unknown(name, task)}")
    value = _in_its_form(argument, value)
    try:
        read = _plain(argument, value)
    except WrongValue as wrong:
        if not is_evaluated(str(value)):
            return Carried(name=argument.name, value=value, remark=f"{NOT_CARRIED}: {SHELL_ALONE}")
        return Carried(
            name=argument.name, value=value, remark=f"{NOT_CARRIED}: {explain_value(argument.name, value) or wrong}"
        )
    if not is_evaluated(str(value)):
        return Carried(name=argument.name, value=read, remark=f"{NOT_CARRIED}: {SHELL_ALONE}")
    if alias and alias.inverted:
        read = not read
    if argument.status == "refused" and (message := objection(argument, read_value(argument, read), task)):
        return Carried(name=argument.name, value=read, remark=f"{NOT_CARRIED}: {message}")
    remark = f"was {name}" if alias else ""
    return Carried(name=argument.name, value=read, remark=remark)


def _in_its_form(argument: Argument, value: object) -> object:
    """The value as a list, a text or a truth value, where a command line or a configuration has another form of it."""
    if (argument.name, str(value)) in elsewhere.OTHER_VALUES:
        return elsewhere.OTHER_VALUES[argument.name, str(value)]
    if argument.is_list and isinstance(value, str):
        return [value]
    if argument.type == "str" and isinstance(value, list) and len(value) == 1:
        return value[0]  # adapters is a list in 4.x
    is_text = isinstance(value, str) and value.lstrip().startswith("{") and "json" in argument.type
    is_truth = isinstance(value, str | int) and argument.type == "bool"
    return from_text(argument, str(value)) if is_text or is_truth else value


def _plain(argument: Argument, value: object) -> object:
    """The value in YAML's types."""
    read = read_value(argument, value)
    return list(read) if isinstance(read, tuple) else read


def _defaults(values: Mapping[str, object], task: Task, version: Version) -> Iterator[Carried]:
    """The version's defaults that differ from ours, for arguments that the command does not set."""
    wanted = dict(DEFAULTS_OF_4) if version == "4" else {}
    if any(name.startswith(("moe_", "expert_")) for name in values):
        wanted |= EXPERT_DEFAULTS[version]
    if values.get("deterministic_mode"):
        wanted.pop("cross_entropy_loss_fusion", None)
    if values.get("packing") or task == "rlhf":
        wanted.pop("padding_free", None)
    if values.get("expert_tensor_parallel_size") is None and values.get("tensor_model_parallel_size", 1) == 1:
        wanted.pop("expert_tensor_parallel_size", None)
    if task != "rlhf" and not {"train_iters", "max_epochs"} & values.keys():
        yield Carried(name="max_epochs", value=1, remark=f"{FILL_IN}: the command does not say how long it trains")
    for name, value in wanted.items():
        if name not in values and value != ARGUMENTS[name].default_for(task):
            yield Carried(name=name, value=value, remark=f"default of {version}.x")


def layout_ranks(values: Mapping[str, object], task: Task) -> int:
    """The minimum number of ranks for the layout of these arguments."""
    names = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
    sizes = [int(str(values.get(name, 1))) for name in names]
    experts = int(str(values.get("expert_model_parallel_size", 1)))
    model = sizes[0] * sizes[1] * sizes[2]
    tensor = int(str(values.get("expert_tensor_parallel_size") or sizes[0]))
    whole = tensor * experts * sizes[1]
    ranks = model
    while ranks % whole:
        ranks += model
    return ranks
