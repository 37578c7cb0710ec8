"""Random runs for the comparison of layouts: a family, a task, arguments and a layout, all from one number."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.data import preference_data
from tests.support.ranks import tiny_run

DENSE = (
    "llama",
    "llama_tied",
    "llama_bias",
    "mistral_window",
    "qwen2",
    "qwen2_odd",
    "qwen3",
    "phi3",
    "glm4",
    "ernie4_5",
)
EXPERTS = ("qwen2_moe", "qwen3_moe", "mixtral", "deepseek_v2", "deepseek_v3", "glm4_moe", "qwen3_next")
TASKS = ("sft", "sft", "weighted", "pt", "dpo", "rm", "seq_cls")
TP, PP = "tensor_model_parallel_size", "pipeline_model_parallel_size"
EP, ETP = "expert_model_parallel_size", "expert_tensor_parallel_size"
SP = {TP: 2, "sequence_parallel": True}
LAYOUTS: tuple[tuple[int, dict[str, object]], ...] = (
    (2, SP),
    (2, {PP: 2}),
    (2, {PP: 2, "virtual_pipeline_model_parallel_size": 2}),
    (2, {"context_parallel_size": 2}),
    (2, {}),
    (4, {**SP, PP: 2}),
    (4, SP),
)
LAYOUTS_OF_EXPERTS: tuple[tuple[int, dict[str, object]], ...] = (
    (2, {EP: 2}),
    (2, {**SP, ETP: 1}),
    (2, {**SP, ETP: 2}),
    (2, {**SP, EP: 2, ETP: 1}),
    (4, {PP: 2, EP: 2}),
)
LORA = {"train_type": "lora", "lora_dropout": 0.0, "lora_rank": 4, "target_modules": ["all-linear"]}
FULL: tuple[dict[str, object], ...] = (
    {},
    {"optimizer": "sgd", "use_distributed_optimizer": False},
    {"optimizer": "muon", "muon_tp_mode": "duplicated"},
    {"optimizer": "lion"},
)
RECOMPUTED: tuple[dict[str, object], ...] = (
    {},
    {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
    {"recompute_modules": ["mlp"]},
    {"recompute_modules": ["mlp", "layernorm"]},
)
SEVERAL: tuple[dict[str, object], ...] = (
    {"weight_decay": 0.1},
    {"clip_grad": 0.05},
    {"cross_entropy_loss_fusion": False},
    {"calculate_per_token_loss": True},
    {"overlap_grad_reduce": True},
    {"overlap_grad_reduce": True, "overlap_param_gather": True},
)


@dataclass(frozen=True, kw_only=True)
class RandomRun:
    """What runs: on one rank with `arguments`, on `ranks` with those of `layout` too."""

    family: str
    task: str
    ranks: int
    arguments: dict[str, Any]
    layout: dict[str, Any]


def write_data(folder: Path) -> None:
    """The rows of each task, as TASK.jsonl."""
    rows = [json.loads(line) for line in tiny_run.write_data(folder / "sft.jsonl", rows=24).read_text().splitlines()]
    preference_data.write(folder / "pairs.jsonl", 24)
    texts = [{"messages": [{"role": "assistant", "content": row["messages"][0]["content"]}]} for row in rows]
    _write(folder / "pt.jsonl", texts)
    _write(folder / "weighted.jsonl", [{**row, "weight": (0.5, 1, 2)[n % 3]} for n, row in enumerate(rows)])
    _write(folder / "seq_cls.jsonl", [{**row, "label": n % 3} for n, row in enumerate(rows)])


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def draw(number: int, data: Path) -> RandomRun:
    """The run of this number. Rows come in file order: data-parallel ranks would shuffle them otherwise."""
    random_ = random.Random(number)
    has_experts = random_.random() < 0.4
    family, kind = random_.choice(EXPERTS if has_experts else DENSE), random_.choice(TASKS)
    task = {"pt": "pt", "dpo": "rlhf", "rm": "rlhf"}.get(kind, "sft")
    rows = "pairs" if task == "rlhf" else kind
    arguments: dict[str, Any] = {
        "dataset": [str(data / f"{rows}.jsonl")],
        "dataloader_type": "single",
        "train_iters": 3,
    }
    arguments |= {"rlhf_type": kind} if task == "rlhf" else {}
    arguments |= {"task_type": "seq_cls", "num_labels": 3} if kind == "seq_cls" else {}
    arguments |= LORA if random_.random() < 0.35 else random_.choice(FULL)
    arguments |= random_.choice(RECOMPUTED)
    for some in SEVERAL:
        arguments |= some if random_.random() < 0.2 else {}
    is_packed = random_.random() < 0.4
    arguments |= {"packing": True, "packing_length": 128} if is_packed else {"micro_batch_size": random_.choice((1, 2))}
    choices = [each for each in LAYOUTS if not (is_packed and "context_parallel_size" in each[1])]
    choices += LAYOUTS_OF_EXPERTS * 2 if has_experts else ()
    ranks, layout = random_.choice(choices)
    layout = {**layout, ETP: 1} if has_experts and TP in layout and "lora_rank" in arguments else layout
    return RandomRun(family=family, task=task, ranks=ranks, arguments=arguments, layout=layout)
