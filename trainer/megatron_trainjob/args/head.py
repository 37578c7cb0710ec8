"""Heads that replace the decoder's output layer: scores of whole sequences. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from megatron_trainjob.args.tree import TrainArgs

TOWER = "visual"
"""The module of the vision tower with its aligner."""
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]


GroupKind = Literal["embedding", "reranker", "generative_reranker"]


def has_scores(args: TrainArgs) -> bool:
    """Whether the model ends in a linear from the last token's hidden state to scores."""
    return args.task_type in ("seq_cls", "reranker") or args.rlhf_type == "rm"


def replaces_output(args: TrainArgs) -> bool:
    """Whether there is no output layer: it is replaced by scores, or by nothing in an embedding model."""
    return has_scores(args) or args.task_type == "embedding"


def is_of_sequences(args: TrainArgs) -> bool:
    """Whether the loss is on whole sequences instead of tokens."""
    return has_scores(args) or group_kind(args) is not None


def group_kind(args: TrainArgs) -> GroupKind | None:
    """How rows of several texts are read, None if a row is one text or a pair."""
    return args.task_type if args.task_type in ("embedding", "reranker", "generative_reranker") else None


def group_loss(args: TrainArgs) -> str:
    """The loss of an embedding model or reranker: loss_type, whose own default is a preference loss."""
    if args.loss_type != "sigmoid":
        return args.loss_type
    return "infonce" if args.task_type == "embedding" else "pointwise_reranker"


def num_scores(args: TrainArgs, config: Mapping[str, Any]) -> int:
    """Number of scores per sequence: the argument, else that of config.json; transformers defaults to 2."""
    if args.rlhf_type == "rm" or args.task_type == "reranker":
        return 1
    if args.num_labels is not None:
        return args.num_labels
    labels = config.get("id2label")
    return len(labels) if labels else int(config.get("num_labels") or 2)


def problem_type(args: TrainArgs, config: Mapping[str, Any]) -> ProblemType:
    """The meaning of the scores, determined as in transformers for integer labels."""
    given: ProblemType | None = args.problem_type or config.get("problem_type")
    return given or ("regression" if num_scores(args, config) == 1 else "single_label_classification")


def modules_to_save(args: TrainArgs) -> tuple[str, ...]:
    """The modules that train in full besides adapters: a head always does, and a vision tower under lora_llm."""
    tower = (TOWER,) if args.train_type == "lora_llm" and TOWER not in args.modules_to_save else ()
    if not has_scores(args):
        return (*args.modules_to_save, *tower)
    others = (name for name in args.modules_to_save if name not in ("score", "output_layer"))
    return (*others, *tower, "output_layer")
