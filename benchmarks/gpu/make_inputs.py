"""Inputs of run.sh: a tiny model for comparing devices, shapes with random weights, data, and arguments.

The shapes are SmolLM2-1.7B's, 2.5 billion parameters with 16 experts, of which two see a token, and for adapters
Qwen2.5-7B's and Qwen3-8B's. The data is DATA as
it is, to be packed, and rows.jsonl, the same texts joined to rows that are all cut to full length.

python3 make_inputs.py FOLDER DATA.jsonl TOKENIZER_DIR
"""

import json
import shutil
import sys
from pathlib import Path

import yaml
from shapes import EXPERTS, QWEN2_5_7B, QWEN3_8B, SHAPE

from tests.support.models import tiny_model
from tests.support.ranks import tiny_run

NUM_FULL_ROWS = 160
FULL_ROW_CHARACTERS = 30_000  # more than 4,096 tokens


def main(folder: Path, data: Path, tokenizer: Path) -> None:
    folder.mkdir(parents=True)
    rows = tiny_run.write_data(folder / "tiny.jsonl")
    tiny = tiny_model.make("llama", folder)
    common = tiny_run.arguments(tiny, rows, folder, train_iters=10, to_hf=True) | {"save": None}
    write(folder / "tiny-fp32.yaml", common)
    write(folder / "tiny-bf16.yaml", common | {"torch_dtype": "bfloat16"})
    lora = {"train_type": "lora", "lora_dropout": 0.0, "lr": 1e-2, "merge_lora": True}
    write(folder / "tiny-lora.yaml", common | lora)
    for name, shape in (("shape", SHAPE), ("experts", EXPERTS), ("qwen2.5-7b", QWEN2_5_7B), ("qwen3-8b", QWEN3_8B)):
        shutil.copytree(tokenizer, folder / name)
        (folder / name / "config.json").write_text(json.dumps(shape))
    full = {
        "model": str(folder / "shape"),
        "dataset": [str(data)],
        "add_version": False,
        "no_initialization": False,
        "packing": True,
        "max_length": 4096,
        "micro_batch_size": 4,
        "global_batch_size": 8,
        "train_iters": 20,
        "log_interval": 2,
        "log_throughput": True,
        "num_workers": 2,
        "no_save_optim": True,
    }
    write(folder / "full.yaml", full)
    write(folder / "full-ga.yaml", full | {"micro_batch_size": 2})
    write(folder / "lora.yaml", full | {"train_type": "lora"})
    eight_bits = {"fp8_format": "hybrid", "torch_dtype": "bfloat16", "lr": 1e-5}
    write(folder / "full-fp8.yaml", full | eight_bits)
    adapters = {"train_type": "lora", "micro_batch_size": 2, "global_batch_size": 8}
    write(folder / "lora-7b.yaml", full | adapters | {"model": str(folder / "qwen2.5-7b")})
    write(folder / "lora-7b-fp8.yaml", full | adapters | eight_bits | {"model": str(folder / "qwen2.5-7b")})
    rows_of_2k = {"model": str(folder / "qwen3-8b"), "max_length": 2048, "micro_batch_size": 4, "global_batch_size": 16}
    write(folder / "lora-8b-2k.yaml", full | adapters | rows_of_2k)
    rows = {"dataset": [str(write_full_rows(data, folder / "rows.jsonl"))], "truncation_strategy": "right"}
    write(folder / "rows.yaml", full | rows)
    write(folder / "rows-fp8.yaml", full | rows | eight_bits)
    experts = {"model": str(folder / "experts")}
    write(folder / "experts.yaml", full | experts)
    write(folder / "experts-rows.yaml", full | experts | rows)


def write_full_rows(data: Path, path: Path) -> Path:
    """Rows that each join answers of DATA until they are longer than any row may be."""
    answers = [json.loads(line)["messages"][-1]["content"] for line in data.read_text().splitlines()]
    rows, number = [], 0
    for _ in range(NUM_FULL_ROWS):
        text = ""
        while len(text) < FULL_ROW_CHARACTERS:
            text += answers[number % len(answers)] + "\n\n"
            number += 7
        question = f"Tell me all that you know, number {len(rows)}."
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
        rows.append(json.dumps({"messages": turns}))
    path.write_text("\n".join(rows))
    return path


def write(path: Path, arguments: dict) -> None:
    path.write_text(yaml.safe_dump({name: value for name, value in arguments.items() if value is not None}))


main(Path(sys.argv[1]), Path(sys.argv[2]).absolute(), Path(sys.argv[3]).absolute())
