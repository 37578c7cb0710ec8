"""`TrainArgs`, all arguments of a run in one flat record, and `ARGUMENTS`, the description of each."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_trainjob.args.field import Argument, describe_group
from megatron_trainjob.args.groups.base_data import BaseData
from megatron_trainjob.args.groups.base_model import BaseModel
from megatron_trainjob.args.groups.base_runtime import BaseRuntime
from megatron_trainjob.args.groups.base_template import BaseTemplate
from megatron_trainjob.args.groups.checkpoint import Checkpoint
from megatron_trainjob.args.groups.distributed import Distributed
from megatron_trainjob.args.groups.dpo import Dpo
from megatron_trainjob.args.groups.elsewhere import Elsewhere
from megatron_trainjob.args.groups.evaluation import Evaluation
from megatron_trainjob.args.groups.export import Export
from megatron_trainjob.args.groups.fp8 import Fp8
from megatron_trainjob.args.groups.learning_rate import LearningRate
from megatron_trainjob.args.groups.logging import Logging
from megatron_trainjob.args.groups.matrix_optimizer import MatrixOptimizer
from megatron_trainjob.args.groups.mixed_precision import MixedPrecision
from megatron_trainjob.args.groups.mla import LatentAttention
from megatron_trainjob.args.groups.model import Model
from megatron_trainjob.args.groups.moe import MixtureOfExperts
from megatron_trainjob.args.groups.prediction import Prediction
from megatron_trainjob.args.groups.regularization import Regularization
from megatron_trainjob.args.groups.retrieval import Retrieval
from megatron_trainjob.args.groups.rlhf import Rlhf
from megatron_trainjob.args.groups.train_extra import TrainExtra
from megatron_trainjob.args.groups.training import Training
from megatron_trainjob.args.groups.tuner import Tuner
from megatron_trainjob.args.groups.tuner_full import TunerFull
from megatron_trainjob.args.groups.tuner_lora import TunerLora

GROUPS: dict[str, type] = {
    "training": Training,
    "learning_rate": LearningRate,
    "regularization": Regularization,
    "matrix_optimizer": MatrixOptimizer,
    "checkpoint": Checkpoint,
    "distributed": Distributed,
    "logging": Logging,
    "evaluation": Evaluation,
    "fp8": Fp8,
    "mixed_precision": MixedPrecision,
    "model": Model,
    "moe": MixtureOfExperts,
    "mla": LatentAttention,
    "prediction": Prediction,
    "tuner": Tuner,
    "tuner_full": TunerFull,
    "tuner_lora": TunerLora,
    "dpo": Dpo,
    "train_extra": TrainExtra,
    "rlhf": Rlhf,
    "retrieval": Retrieval,
    "base_model": BaseModel,
    "base_data": BaseData,
    "base_template": BaseTemplate,
    "base_runtime": BaseRuntime,
    "export": Export,
    "elsewhere": Elsewhere,
}


@dataclass(frozen=True, kw_only=True)
class TrainArgs(  # last group first: dataclass fields follow the reversed order of the bases
    Elsewhere,
    Export,
    BaseRuntime,
    BaseTemplate,
    BaseData,
    BaseModel,
    Retrieval,
    Rlhf,
    TrainExtra,
    Dpo,
    TunerLora,
    TunerFull,
    Tuner,
    Prediction,
    LatentAttention,
    MixtureOfExperts,
    Model,
    MixedPrecision,
    Fp8,
    Evaluation,
    Logging,
    Distributed,
    Checkpoint,
    MatrixOptimizer,
    Regularization,
    LearningRate,
    Training,
):
    """All arguments under canonical names. None means absent; the help of an argument describes that case."""


ARGUMENTS: dict[str, Argument] = {
    name: argument
    for group, declaration in GROUPS.items()
    for name, argument in describe_group(group, declaration).items()
}

OF_VARIABLES: dict[str, str] = {
    name.upper(): name
    for name, argument in ARGUMENTS.items()
    if argument.group == "retrieval" and not name.startswith("matryoshka")
} | {"ROOT_IMAGE_DIR": "image_root"}
"""Environment variables of ms-swift that are arguments here, such as INFONCE_TEMPERATURE."""
