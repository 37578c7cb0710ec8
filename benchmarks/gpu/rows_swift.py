"""ms-swift's Megatron trainer on the same conversations, packed, for side_by_side.py.

Needs ms-swift and what it needs, at the end of PEER_PATH where that is set: its packages are then not ours.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from card_speeds import running
from transformers import AutoConfig, AutoModelForCausalLM

LENGTH, GLOBAL_BATCH, STEPS, LOGGED_EVERY = 4096, 8, 16, 4
ITS_OWN = {"PYTHONUNBUFFERED": "1", "MODELSCOPE_OFFLINE": "1", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}


def make_model(shape: Mapping[str, object], tokenizer: Path, folder: Path, device: str = "cuda") -> Path:
    """Random weights in bfloat16, which it reads."""
    if not (folder / "config.json").exists():
        shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
        torch.manual_seed(1)
        with torch.device(device):
            made = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape), dtype=torch.bfloat16)
        made.save_pretrained(folder)
        del made
        torch.cuda.empty_cache()
    return folder


def command(model: Path, data: Path, out: Path, kind: str, micro_batch: int) -> list[str]:
    """Tuned: its fused attention and cross entropy, nothing recomputed."""
    given = {
        "model": model,
        "model_type": "llama",
        "template": "chatml",
        "dataset": data,
        "packing": "true",
        "max_length": LENGTH,
        "micro_batch_size": micro_batch,
        "global_batch_size": GLOBAL_BATCH,
        "train_iters": STEPS,
        "tuner_type": kind,
        "attention_backend": "fused",
        "recompute_granularity": "none",
        "finetune": "true",
        "cross_entropy_loss_fusion": "true",
        "lr": "1e-5",
        "min_lr": "1e-6",
        "lr_warmup_iters": 2,
        "logging_steps": LOGGED_EVERY,
        "save_steps": 1000,
        "output_dir": out,
        "no_save_optim": "true",
        "no_save_rng": "true",
        "dataset_num_proc": 8,
        "dataloader_num_workers": 2,
        "split_dataset_ratio": 0,
    }
    options = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "1", "--master_port", "29533"]
    return [*launch, str(program()), *options]


def program() -> Path:
    """Where its trainer is. Raises FileNotFoundError."""
    for folder in (*os.environ.get("PEER_PATH", "").split(os.pathsep), *sys.path):
        found = Path(folder) / "swift/cli/_megatron/sft.py"
        if found.exists():
            return found
    raise FileNotFoundError("ms-swift is not installed")


def measure(model: Path, data: Path, out: Path, kind: str, micro_batch: int, timeout: int) -> dict[str, float] | str:
    """Tokens a second and peak memory of the steps after the first that are logged; or why there are none.

    Every place of a packed row counts: it fills 0.997 of them.
    """
    paths = filter(None, (os.environ.get("PYTHONPATH"), os.environ.get("PEER_PATH")))
    environment = {**ITS_OWN, "PYTHONPATH": os.pathsep.join(paths)}
    out.mkdir(parents=True)
    launch = [sys.executable, *command(model, data, out, kind, micro_batch)]
    with running(launch, out / "log", environment, 1) as process:
        until = time.monotonic() + timeout
        while process.poll() is None and time.monotonic() < until and not ended(out):
            time.sleep(0.5)
    rated = logged(out)
    if len(rated) < 2:
        errors = [line for line in (out / "log").read_text(errors="replace").splitlines() if "Error" in line]
        return f"exit {process.poll()}, {(errors or ['no error'])[0][:200]}, see {out / 'log'}"
    (first, since), (last, until) = ((number, number * line["train_speed(s/it)"]) for number, line in numbered(rated))
    tokens = (last - first) * GLOBAL_BATCH * LENGTH
    return {"tokens/s": tokens / (until - since), "peak GiB": max(line["memory(GiB)"] for line in rated)}


def logged(out: Path) -> list[dict]:
    """The lines of steps so far."""
    lines = [line for log in out.rglob("logging.jsonl") for line in log.read_text().splitlines() if line.endswith("}")]
    return [line for line in map(json.loads, lines) if "train_speed(s/it)" in line and "loss" in line]


def ended(out: Path) -> bool:
    """Whether its last step is logged: what it saves then is not waited for."""
    return any(line["iteration"].split("/")[0] == str(STEPS) for line in logged(out))


def numbered(lines: list[dict]) -> list[tuple[int, dict]]:
    """The first and the last line with their steps."""
    return [(int(line["iteration"].split("/")[0]), line) for line in (lines[0], lines[-1])]
