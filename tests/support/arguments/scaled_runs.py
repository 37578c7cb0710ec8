"""Arguments of a real training, scaled down to a tiny model, stand-in data and at most four ranks. Pure.

Kept is how the run trains and how it is split: of each parallel size what two ranks show. Set aside are arguments that
need a GPU; replaced are those that name the files, the size and the length of the real run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_trainjob.args.field import Task
from megatron_trainjob.args.tree import ARGUMENTS
from tests.support.models import layouts

MAX_RANKS = 4
SIZES = tuple(
    f"{name}_parallel_size" for name in ("tensor_model", "pipeline_model", "context", "expert_model", "expert_tensor")
)
# What is given up first where two ranks of each kind are too many.
GIVEN_UP = ("context_parallel_size", "expert_tensor_parallel_size", "pipeline_model_parallel_size")
UNEVEN = ("decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers")
# Sources and outputs: stand-ins and the test's folder take their place.
OF_THE_FILES = frozenset(
    {"model", "load", "mcore_model", "model_type", "use_hf", "hub_revision", "save", "tensorboard_dir"}
    | {"dataset", "val_dataset", "cached_dataset", "cached_val_dataset", "new_special_tokens"}
    | {"adapter_load", "mcore_adapters", "ref_load", "ref_adapter_load"}
)
# Lengths of the real run, and three steps in their place, with an evaluation on the way.
OF_THE_LENGTH = frozenset(
    {"max_epochs", "train_iters", "eval_iters", "lr_warmup_iters", "lr_decay_iters", "lr_wsd_decay_iters"}
    | {"save_interval", "packing_length", *UNEVEN}
)
SHORT: Mapping[str, Any] = {"train_iters": 3, "eval_interval": 2, "num_workers": 0, "dataset_num_proc": 1}
LIMITS: Mapping[str, int] = {"micro_batch_size": 2, "recompute_num_layers": 1}
MAX_LENGTH = 256
# Numbers in which runs differ although they train the same way.
NUMBERS = frozenset(
    {"lr", "min_lr", "lr_warmup_fraction", "log_interval", "split_dataset_ratio", "lora_rank", "lora_alpha"}
    | {"moe_aux_loss_coeff", "model_author", "model_name"}
)
# Names of models -> the tiny model of the family, first match first.
FAMILIES: tuple[tuple[str, str], ...] = (
    (r"Qwen2\.5-VL", "qwen2_5_vl"),
    (r"Qwen2-VL", "qwen2_vl"),
    (r"Qwen3-VL-\d+B-A", "qwen3_vl_moe"),
    (r"Qwen3-VL", "qwen3_vl"),
    (r"Qwen1\.5-MoE", "qwen2_moe"),
    (r"Qwen3-(Coder-)?(30B|235B|480B)", "qwen3_moe"),
    (r"Qwen3-Next", "qwen3_next"),
    (r"Qwen3\.[56]-\d+B-A", "qwen3_5_moe"),
    (r"Qwen3\.[56]", "qwen3_5"),
    (r"Qwen3-(Embedding|Reranker|\d)", "qwen3"),
    (r"Qwen2(\.5)?-\d", "qwen2"),
    (r"GLM-4\.1V|GLM-4\.6V-Flash", "glm4v"),
    (r"GLM-4\.[56]V", "glm4v_moe"),
    (r"InternVL3_5-GPT-OSS", "internvl_gpt_oss"),
    (r"InternVL3_5-\d+B-A", "internvl_qwen3_moe"),
    (r"InternVL3_5", "internvl_qwen3"),
    (r"InternVL3", "internvl"),
    (r"GLM-4\.[5-7](?!V)", "glm4_moe"),
    (r"Moonlight|DeepSeek-(V3|R1)", "deepseek_v3"),
    (r"Llama-[23]|SmolLM2", "llama"),
    (r"gpt-oss", "gpt_oss"),
    (r"gemma-4-26B", "gemma4"),
    (r"Llama-4", "llama4"),
)
# The text decoder of models that are not trained here with images, or not for the task: the other arguments run.
DECODERS: tuple[tuple[str, str], ...] = (
    (r"Qwen2\.5-(VL|Omni)", "qwen2"),
    (r"Qwen3-(VL|Omni)-\d+B-A|InternVL3_5-30B-A3B", "qwen3_moe"),
    (r"Qwen3-VL", "qwen3"),
    (r"GLM-4\.1V|GLM-4\.6V-Flash", "glm4v"),
    (r"InternVL3_5-GPT-OSS", "gpt_oss"),
    (r"gemma-4-12B", "gemma4_unified_text"),
)


@dataclass(frozen=True, kw_only=True)
class ScaledRun:
    """A run that fits here.

    model: of tiny_model.MODELS. stand_ins: arguments whose files the test makes (load, cached_dataset, ...).
    """

    task: Task
    model: str
    num_ranks: int
    arguments: Mapping[str, Any]
    stand_ins: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The same for runs that differ in numbers alone."""
        shape = sorted((name, repr(value)) for name, value in self.arguments.items() if name not in NUMBERS)
        return repr((self.task, self.model, self.num_ranks, self.stand_ins, shape))


def tiny_models_of(name: str) -> dict[str, bool]:
    """The tiny models that stand in, the best first -> whether it is only the decoder of one with images."""
    found: dict[str, bool] = {}
    for is_decoder, table in ((False, FAMILIES), (True, DECODERS)):
        model = next((model for pattern, model in table if re.search(pattern, name)), None)
        found |= {model: is_decoder} if model else {}
    return found


def scaled(task: Task, given: Mapping[str, Any], *, num_ranks: int, model: str) -> ScaledRun:
    """A run with these arguments, which had so many ranks, on the tiny model."""
    kept = {name: value for name, value in given.items() if is_kept(name)}
    kept |= {name: min(int(kept[name]), limit) for name, limit in LIMITS.items() if name in kept}
    kept |= layout(given)
    ranks = max(layouts.num_ranks(kept), min(2, num_ranks))
    tensor, pipeline, context = (kept.get(name, 1) for name in SIZES[:3])
    if pipeline > 1:
        kept |= {name: 1 for name in UNEVEN if name in given}
    if kept.get("split_dataset_ratio"):
        kept["split_dataset_ratio"] = 0.25
    if "matryoshka_dims" in kept:
        kept["matryoshka_dims"] = [16, 64]
    batch = kept.get("micro_batch_size", 1) * ranks // (tensor * pipeline * context) * 2
    return ScaledRun(
        task=task,
        model=model,
        num_ranks=ranks,
        arguments={**kept, **SHORT, "max_length": MAX_LENGTH, "global_batch_size": batch},
        stand_ins=tuple(sorted(OF_THE_FILES & given.keys() - {"model", "dataset", "use_hf", "model_type"})),
    )


def is_kept(name: str) -> bool:
    """Whether the argument says how the run trains, on any machine."""
    is_gpus_alone = ARGUMENTS[name].status == "works on GPU only" or name.startswith("fp8_")
    return not is_gpus_alone and name not in OF_THE_FILES | OF_THE_LENGTH and not name.startswith(("wandb", "swanlab"))


def layout(given: Mapping[str, Any]) -> dict[str, int]:
    """The parallel sizes, two of each at most and four ranks together."""
    sizes = {name: min(int(given[name]), 2) for name in SIZES if name in given}
    for name in GIVEN_UP:
        if layouts.num_ranks(sizes) > MAX_RANKS and name in sizes:
            sizes[name] = 1
    return sizes
