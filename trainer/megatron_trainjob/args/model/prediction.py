"""Multi-token prediction: which families have it, and how many of its layers are trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from megatron_trainjob.args import head
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.families.family import Family
from megatron_trainjob.families.model import Model
from megatron_trainjob.violation import Violation

NUMBER = "num_nextn_predict_layers"
"""The key of config.json with the number of layers, in published models of every family that has them."""


def has_prediction(family: Family) -> bool:
    """Whether checkpoints of the family can have multi-token-prediction layers."""
    return NUMBER in family.keys or NUMBER in family.aliases


def of_random_weights(family: Family, args: TrainArgs) -> Mapping[str, Any]:
    """The change to the config.json of a model that starts from random weights: it has the layers that are trained."""
    is_new = not args.no_initialization and args.mtp_num_layers is not None
    return {NUMBER: args.mtp_num_layers} if is_new and has_prediction(family) else {}


def applied(model: Model, family: Family, args: TrainArgs) -> tuple[Model, list[Violation]]:
    """The model with its trained multi-token-prediction layers, and why it cannot have so many."""
    number = args.mtp_num_layers or 0
    if number == 0:
        return model, []
    if head.is_of_sequences(args):
        message = f"these layers predict tokens, which task_type {args.task_type} does not train; remove it"
    elif not has_prediction(family):
        message = f"a model of type {family.model_type} has no multi-token-prediction layers; remove it"
    elif number > model.prediction_layers:
        held = model.prediction_layers or "no"
        message = f"the model has {held} multi-token-prediction layers ({NUMBER} in config.json); train at most those"
    else:
        return replace(model, trained_predictions=number), []
    return model, [Violation(path="spec.args.mtp_num_layers", value=number, message=message)]
