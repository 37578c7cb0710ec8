"""What a run may change when it resumes from a checkpoint: all differences by name, and those that are refused.

A record is the content of args.json: task, arguments, values derived from them (resolved), the model's config.json with
the arguments applied (model_config), and digests of the weights that the run starts from (weights).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from megatron_trainjob.args.tree import ARGUMENTS
from megatron_trainjob.violation import Violation

Verdict = Literal["takes effect", "not of the training", "another network", "another optimizer", "another start"]

MAY_DIFFER_IN_MODEL = frozenset(
    {"attention_dropout", "hidden_dropout", "transformer_impl", "max_position_embeddings", "padded_vocab_size"}
)
SHAPES_EXPERTS = frozenset(
    {
        "num_experts",
        "moe_layer_freq",
        "moe_ffn_hidden_size",
        "moe_shared_expert_intermediate_size",
        "moe_router_topk",
        "moe_router_pre_softmax",
        "moe_router_score_function",
        "moe_router_enable_expert_bias",
        "moe_router_topk_scaling_factor",
    }
)
ANOTHER_NETWORK = (
    frozenset(
        name
        for name, argument in ARGUMENTS.items()
        if argument.group in ("model", "mla") and name not in MAY_DIFFER_IN_MODEL
    )
    | SHAPES_EXPERTS
    | {"mtp_num_layers"}
    | {"task", "train_type", "rlhf_type", "new_special_tokens"}
    | {"target_modules", "target_regex", "modules_to_save", "lora_rank", "lora_alpha", "lora_bias", "use_rslora"}
    | {"task_type", "num_labels", "problem_type", "generative_reranker_positive_token"}
    | {"generative_reranker_negative_token"}
)
"""What is trained, and for which task. Some changes would fit the tensors but train another network."""
ANOTHER_OPTIMIZER = frozenset(
    {"optimizer", "use_distributed_optimizer", "freeze_llm", "freeze_vit", "freeze_aligner"}
    | {name for name, argument in ARGUMENTS.items() if argument.group == "tuner_full"}
)
"""The state that the optimizer keeps, and for which parameters."""
PRECISION = ("torch_dtype", "fp16", "bf16")
NOT_OF_THE_TRAINING = frozenset(
    {"model", "model_revision", "use_hf", "hub_token", "local_repo_path", "save", "add_version", "load", "adapter_load"}
    | {"finetune", "load_args", "load_data_args", "no_load_optim", "no_load_rng", "ignore_args_error"}
    | {name for name, argument in ARGUMENTS.items() if argument.group == "export"}
)
"""Paths, and what this resume loads from the checkpoint. A model is compared by its config.json."""
LABELS_IN_CONFIG = frozenset(
    {"_name_or_path", "architectures", "auto_map", "transformers_version", "dtype", "torch_dtype", "use_cache"}
    | {"max_position_embeddings", "attention_dropout", "hidden_dropout", "_attn_implementation"}
    | {"resid_pdrop", "residual_dropout", "embd_pdrop", "router_jitter_noise"}
)
"""Keys of config.json that do not affect the network, or that arguments may change."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One difference. name: of an argument, of a derived value, or of a key of config.json."""

    name: str
    before: Any
    after: Any
    verdict: Verdict

    def __str__(self) -> str:
        return f"{self.name} was {_shown(self.before)}, is {_shown(self.after)}"


def is_record(content: object) -> TypeGuard[dict[str, Any]]:
    """Whether this is a valid args.json of any release: the compared sections, with the right types."""
    if not isinstance(content, dict) or not {"task", "arguments"} <= content.keys():
        return False
    sections = [content[name] for name in ("arguments", "resolved", "model_config", "weights") if name in content]
    return (
        isinstance(content["task"], str)
        and all(isinstance(section, dict) for section in sections)
        and all(isinstance(identity, str | None) for identity in content.get("weights", {}).values())
    )


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Change, ...]:
    """Every difference between the record of the checkpoint and that of the run that resumes from it.

    Entries missing in the older record are not compared: it may be from an earlier release.
    """
    arguments = _differing({"task": before["task"]}, {"task": after["task"]})
    arguments += _differing(before["arguments"], after["arguments"])
    found = [
        Change(name=name, before=old, after=new, verdict=_verdict_here(name, before, after))
        for name, old, new in arguments
        if not (name in ARGUMENTS and ARGUMENTS[name].secret)
    ]
    found += _other_weights(before, after)
    found += [
        Change(name=f"{name} (derived)", before=old, after=new, verdict="takes effect")
        for name, old, new in _differing(before.get("resolved", {}), after.get("resolved", {}))
        if name not in {change.name for change in found}
    ]
    if not any(change.verdict == "another network" for change in found):
        config = _differing(before.get("model_config", {}), after.get("model_config", {}), also_missing=True)
        found += [
            Change(name=f"{name} (config.json)", before=old, after=new, verdict="another network")
            for name, old, new in config
            if name not in LABELS_IN_CONFIG
        ]
    return tuple(found)


def _other_weights(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Weights whose content differs from the start of the run. Moving or renaming their folder is no change."""
    arguments = after["arguments"]
    is_lora = arguments.get("train_type") in ("lora", "lora_llm")
    base = "load" if arguments.get("load") else "model"
    reference = "ref_adapter_load" if is_lora else "ref_load"
    kinds: dict[str, tuple[str, Verdict]] = {
        "base": (base, "another network" if is_lora else "another start"),
        "adapter": ("adapter_load", "another start"),
        "reference": (reference if arguments.get(reference) else base, "takes effect"),
    }
    return [
        Change(name=f"{kinds[kind][0]} (weights of the {kind})", before=old, after=new, verdict=kinds[kind][1])
        for kind, old, new in _differing(before.get("weights", {}), after.get("weights", {}))
        if kind in kinds and _content(old) != _content(new)
    ]


def _content(identity: str | None) -> str | None:
    """The digest behind the path."""
    return identity and identity.rpartition(" (")[2]


def verdict(name: str) -> Verdict:
    """The effect of a change of this argument on a resumed run."""
    if name in ANOTHER_NETWORK:
        return "another network"
    if name in ANOTHER_OPTIMIZER:
        return "another optimizer"
    return "not of the training" if name in NOT_OF_THE_TRAINING else "takes effect"


def _verdict_here(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Verdict:
    """As `verdict`, which may depend on other arguments: whether the checkpoint has all that the optimizer keeps."""
    arguments = before["arguments"]
    if name in PRECISION and _is_half(before) != _is_half(after):
        is_spread = after["arguments"].get("use_distributed_optimizer") or arguments.get("optimizer") == "dist_muon"
        return "takes effect" if is_spread else "another optimizer"
    if name == "sgd_momentum" and arguments.get("optimizer") == "sgd" and not arguments[name]:
        return "another optimizer"
    return verdict(name)


def _is_half(record: Mapping[str, Any]) -> bool:
    """Whether it trains in 16 bits, beside which an optimizer that is not distributed keeps main parameters."""
    arguments, config = record["arguments"], record.get("model_config") or {}
    flags = [arguments.get(name) for name in ("fp16", "bf16")]
    if flags != [None, None]:
        return any(flags)
    dtype = arguments.get("torch_dtype") or config.get("dtype") or config.get("torch_dtype") or "float32"
    return str(dtype).endswith("float16")


def refused(
    found: Iterable[Change], checkpoint: str, *, with_optimizer: bool, has_steps_left: bool = True
) -> tuple[Violation, ...]:
    """A violation for each change that is not allowed. with_optimizer: its state is loaded.

    has_steps_left: otherwise a run with other weights or another reference would succeed without a step.
    """
    reasons: dict[Verdict, str] = {"another network": "start another run, in another save"}
    if with_optimizer:
        reasons["another optimizer"] = "continue without the optimizer's state (no_load_optim true)"
    kept = "which a run that continues from it must keep; set it back, or "
    messages = {verdict: kept + remedy for verdict, remedy in reasons.items()}
    if not has_steps_left:
        messages["another start"] = "and already has all steps of this run; set it back, or set another save"
    return tuple(
        Violation(
            path=f"spec.{change.name}" if change.name == "task" else f"spec.args.{change.name}",
            value=change.after,
            message=f"{checkpoint} was saved with {_shown(change.before)}, {message}",
        )
        for change in found
        if (message := messages.get(_effective(change, has_steps_left=has_steps_left)))
    )


def _effective(change: Change, *, has_steps_left: bool) -> Verdict:
    """Another reference applies to the remaining steps; if there are none, it is another run."""
    is_reference = change.name.endswith("(weights of the reference)")
    return "another start" if is_reference and not has_steps_left else change.verdict


def _differing(
    before: Mapping[str, Any], after: Mapping[str, Any], *, also_missing: bool = False
) -> list[tuple[str, Any, Any]]:
    names = {*before, *after} if also_missing and before and after else before.keys() & after.keys()
    return [(name, before.get(name), after.get(name)) for name in sorted(names) if before.get(name) != after.get(name)]


def _shown(value: object) -> str:
    return "unset" if value is None else repr(value)
