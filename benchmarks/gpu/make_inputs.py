"""Inputs of run.sh: a tiny model for comparing devices, SmolLM2-1.7B's shape with random weights, and their arguments.

python3 make_inputs.py FOLDER DATA.jsonl TOKENIZER_DIR
"""

import json
import shutil
import sys
from pathlib import Path

import yaml

import tiny_model
import tiny_run

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 130000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}


def main(folder: Path, data: Path, tokenizer: Path) -> None:
    folder.mkdir(parents=True)
    rows = tiny_run.write_data(folder / "tiny.jsonl")
    tiny = tiny_model.make("llama", folder)
    common = tiny_run.arguments(tiny, rows, folder, train_iters=10, to_hf=True) | {"save": None}
    write(folder / "tiny-fp32.yaml", common)
    write(folder / "tiny-bf16.yaml", common | {"torch_dtype": "bfloat16"})
    lora = {"train_type": "lora", "lora_dropout": 0.0, "lr": 1e-2, "merge_lora": True}
    write(folder / "tiny-lora.yaml", common | lora)
    model = folder / "shape"
    shutil.copytree(tokenizer, model)
    (model / "config.json").write_text(json.dumps(SHAPE))
    full = {
        "model": str(model),
        "dataset": [str(data)],
        "add_version": False,
        "no_initialization": False,
        "packing": True,
        "max_length": 4096,
        "micro_batch_size": 4,
        "global_batch_size": 8,
        "train_iters": 20,
        "log_interval": 5,
        "log_throughput": True,
        "num_workers": 2,
        "no_save_optim": True,
    }
    write(folder / "full.yaml", full)
    write(folder / "full-ga.yaml", full | {"micro_batch_size": 2})
    write(folder / "lora.yaml", full | {"train_type": "lora"})
    write(folder / "full-fp8.yaml", full | {"fp8_format": "hybrid", "torch_dtype": "bfloat16", "lr": 1e-5})


def write(path: Path, arguments: dict) -> None:
    path.write_text(yaml.safe_dump({name: value for name, value in arguments.items() if value is not None}))


main(Path(sys.argv[1]), Path(sys.argv[2]).absolute(), Path(sys.argv[3]).absolute())
