"""Settings of ms-swift that are no argument here, and are carried over all the same.

Those that ask for what is done in any case are left out; fields of Megatron-Core without an argument go into
extra_megatron_kwargs, and what stands there and is an argument here becomes that argument.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress

import yaml

from megatron_operator.translate.shell.nodes import is_evaluated
from megatron_trainjob.args.field import Task
from megatron_trainjob.args.names import find_alias
from megatron_trainjob.args.other_programs import (
    DONE,
    FIELDS_OF_MEGATRON,
    OTHER_METHODS,
    OTHER_PREFIXES,
    SHAPE,
    WITHOUT_COUNTERPART,
)
from megatron_trainjob.args.tree import ARGUMENTS
from megatron_trainjob.args.value import TRUTH

EXTRA = "extra_megatron_kwargs"
NAMES_OF_EXTRA = (EXTRA, "megatron_extra_kwargs")
DIMENSIONS = "mrl_dims"
SHUFFLE = "train_dataloader_shuffle"
IN_ANY_CASE = "it is what is done in any case"
ASKS_FOR_NOTHING = "it asks for nothing"
SAME_REFERENCE = "the model itself is the reference without it"
SAME: Mapping[str, tuple[str, ...]] = {
    "train_dataloader_shuffle": ("true",),
    "data_parallel_random_init": ("false",),
    "weight_decay_incr_style": ("constant",),
    "cp_partition_mode": ("zigzag",),
    "account_for_embedding_in_pipeline_split": ("false",),
    "account_for_loss_in_pipeline_split": ("false",),
    "overlap_param_gather_with_optimizer_step": ("false",),
    "moe_pad_expert_input_to_capacity": ("false",),
    "use_torch_optimizer_for_cpu_offload": ("false",),
    "overlap_cpu_optimizer_d2h_h2d": ("false",),
    "overlap_moe_expert_parallel_comm": ("false",),
    "pin_cpu_grads": ("true",),
    "pin_cpu_params": ("true",),
    "muon_coefficient_type": ("quintic",),
    "muon_scalar_optimizer": ("adam",),
    "mtp_decoder_input_detach": ("false",),
    "mtp_shared_weights": ("false",),
    "dsa_indexer_loss_coeff": ("0", "0.0", "0."),
    "dsa_indexer_use_sparse_loss": ("false",),
    "apply_dsa_kernel_fusion": ("false",),
    "csa_dense_mode": ("false",),
    "use_fused_mhc": ("false",),
    "language_model_only": ("false",),
    "apply_wd_to_qk_layernorm": ("false",),
    "num_distributed_optimizer_instances": ("1",),
    **dict.fromkeys((name for name, reason in WITHOUT_COUNTERPART.items() if reason == DONE), ("true",)),
}
"""Values that ask for the same as leaving the name out, there and here."""
_ORDER = "samples come in an order of this trainer's own"
_SPEED = "no number depends on it"
_FORMAT = "checkpoints have a format of their own, which any layout reads"
WITHOUT_EFFECT: Mapping[str, str] = {
    **dict.fromkeys(("data_sharding", "no_data_sharding"), _ORDER),
    **dict.fromkeys(("dataloader_pin_memory", "manual_gc_eval", "nccl_comm_warmup"), _SPEED),
    **dict.fromkeys(("align_param_gather", "align_grad_reduce", "overlap_p2p_comm", "batch_p2p_comm"), _SPEED),
    **dict.fromkeys(("ckpt_fully_parallel_load", "ckpt_assume_constant_structure"), _FORMAT),
    **dict.fromkeys(("dist_ckpt_save_pre_mcore_014", "dist_ckpt_optim_fully_reshardable"), _FORMAT),
    "distrib_optim_fully_reshardable_mem_efficient": _FORMAT,
    "accumulate_allreduce_grads_in_fp32": "main_grads_dtype decides, which is fp32",
    "bridge_backend": "weights are converted by this trainer",
}
OTHER_VALUES: Mapping[tuple[str, str], str] = {
    ("logging_level", "10"): "DEBUG",
    ("logging_level", "20"): "INFO",
    ("logging_level", "30"): "WARNING",
    ("logging_level", "40"): "ERROR",
    ("logging_level", "50"): "CRITICAL",
}
"""Values with another name here."""
OTHER_SPELLINGS = {"microbatch_group_size_per_virtual_pipeline_stage": "microbatch_group_size_per_vp_stage"}


def needless(name: str, value: object, task: Task) -> str:
    """Why the setting can be left out, "" for one that an argument stands for, or that asks for something."""
    name = _plain(name)
    if _is_argument(name, task):
        return ""
    if name in WITHOUT_EFFECT:
        return WITHOUT_EFFECT[name]
    if name in SAME:
        return IN_ANY_CASE if str(value).lower() in SAME[name] else ""
    return ASKS_FOR_NOTHING if TRUTH.get(str(value).lower()) is False and _is_of_another_method(name) else ""


def _plain(name: str) -> str:
    return name.replace("-", "_")


def _is_argument(name: str, task: Task) -> bool:
    return name in ARGUMENTS or find_alias(name, task) is not None


def _is_of_another_method(name: str) -> bool:
    """Whether it switches something on that there is not here, such as a profiler."""
    of_method = any(
        name in names or name.startswith(OTHER_PREFIXES.get(method, ("\0",)))
        for method, (names, _) in OTHER_METHODS.items()
    )
    return of_method or WITHOUT_COUNTERPART.get(name, SHAPE) not in (SHAPE, DONE)


def in_our_places(written: Mapping[str, object], task: Task) -> tuple[dict[str, object], dict[str, str]]:
    """(the settings with each one where it belongs here, remarks by name)."""
    left: dict[str, object] = dict(written)
    remarks: dict[str, str] = {}
    for change in (_lifted, _passed_on, _dimensions, _reference, _order):
        left, found = change(left, task)
        remarks |= found
    return left, remarks


def _lifted(written: Mapping[str, object], task: Task) -> tuple[dict[str, object], dict[str, str]]:
    """Fields in extra_megatron_kwargs that are arguments, which they replace there, or needless."""
    name = next((each for each in NAMES_OF_EXTRA if each in written), "")
    fields = _mapping(written.get(name))
    lifted = {
        _plain(key): value
        for key, value in fields.items()
        if _is_argument(_plain(key), task) or needless(key, value, task)
    }
    if not lifted:
        return dict(written), {}
    ours = {_canonical(key, task) for key in lifted}
    left = {key: value for key, value in written.items() if _canonical(_plain(key), task) not in ours}
    rest = {key: value for key, value in fields.items() if _plain(key) not in lifted}
    left = {**left, **({name: rest} if rest else {}), **lifted}
    if not rest:
        left.pop(name)
    return left, {key: f"was in {name}" for key in lifted}


def _canonical(name: str, task: Task) -> str:
    alias = find_alias(name, task)
    return alias.canonical if alias else name


def _passed_on(written: Mapping[str, object], task: Task) -> tuple[dict[str, object], dict[str, str]]:
    """Fields of Megatron-Core without an argument, in extra_megatron_kwargs."""
    fields = {
        name: OTHER_SPELLINGS.get(name, name)
        for name, value in written.items()
        if OTHER_SPELLINGS.get(name, name) in FIELDS_OF_MEGATRON
        and not needless(name, value, task)
        and isinstance(value, str | int | float)
        and is_evaluated(str(value))
    }
    name = next((each for each in NAMES_OF_EXTRA if each in written), EXTRA)
    if not fields or task not in ARGUMENTS[EXTRA].applies_to or not isinstance(written.get(name, {}), Mapping | str):
        return dict(written), {}
    extra = {OTHER_SPELLINGS.get(each, each): yaml.safe_load(str(written[each])) for each in fields}
    left = {each: value for each, value in written.items() if each not in fields}
    return {**left, name: {**extra, **_mapping(written.get(name))}}, {name: f"was {', '.join(fields)}"}


def _dimensions(written: Mapping[str, object], task: Task) -> tuple[dict[str, object], dict[str, str]]:
    """The sizes of embeddings and their weights, in one object there."""
    sizes = _mapping(written.get(DIMENSIONS))
    if not sizes or not all(re.fullmatch(r"\d+", str(size)) for size in sizes):
        return dict(written), {}
    ours = {"matryoshka_dims": [int(size) for size in sizes], "matryoshka_weights": list(sizes.values())}
    left = {name: value for name, value in written.items() if name != DIMENSIONS}
    return {**left, **ours}, dict.fromkeys(ours, f"was {DIMENSIONS}")


def _reference(written: Mapping[str, object], task: Task) -> tuple[dict[str, object], dict[str, str]]:
    """A folder of the reference model under its name here; adapters of the reference, too."""
    names = {"ref_adapters": "ref_adapter_load"} | (
        {"ref_model": "ref_load"} if str(written.get("ref_model", "")).startswith(("/", "./", "../", "~")) else {}
    )
    renamed = {names[name]: name for name in names if name in written}
    left = {names.get(name, name): value for name, value in written.items()}
    return left, {name: f"was {before}" for name, before in renamed.items()}


def _order(written: Mapping[str, object], task: Task) -> tuple[dict[str, object], dict[str, str]]:
    """One pass over the data in its order."""
    epochs = [str(value) for name, value in written.items() if _canonical(name, task) == "max_epochs"]
    if TRUTH.get(str(written.get(SHUFFLE)).lower()) is not False or epochs not in (["1"], ["1.0"]):
        return dict(written), {}
    left = {name: value for name, value in written.items() if name != SHUFFLE}
    return {**left, "dataloader_type": "single"}, {"dataloader_type": f"was {SHUFFLE}: false"}


def is_own_reference(name: str, value: object, written: Mapping[str, object]) -> bool:
    """Whether the reference model is the one that is trained, as it is without saying so."""
    starts_elsewhere = any(written.get(each) is not None for each in ("load", "mcore_model"))
    return name == "ref_model" and value == written.get("model") and not starts_elsewhere


def _mapping(value: object) -> dict[str, object]:
    """The object, also if it is a text; {} for what is none."""
    with suppress(yaml.YAMLError):
        read = yaml.safe_load(value) if isinstance(value, str) else value
        return {str(name): each for name, each in read.items()} if isinstance(read, Mapping) else {}
    return {}
