"""transformers, and peft's adapters, on full rows of random tokens: what side_by_side.py puts beside our own.

    python3 benchmarks/gpu/rows_transformers.py MODEL_DIR [--compile] [--lora]

Weights and AdamW's moments are bfloat16, nothing is recomputed, attention is torch's. MODEL_DIR needs a config.json
alone. Prints the median step of those after the fourth.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

WARM_UP_STEPS = 4


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("model", type=Path)
    options.add_argument("--micro-batch-size", type=int, default=4)
    options.add_argument("--num-micro-batches", type=int, default=2)
    options.add_argument("--length", type=int, default=4096)
    options.add_argument("--steps", type=int, default=12)
    options.add_argument("--compile", action="store_true")
    options.add_argument("--lora", action="store_true", help="of rank 8 on all linear layers, with dropout 0.05")
    options.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    given = options.parse_args()
    model = make_model(given)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=given.device == "cuda")
    called = torch.compile(model) if given.compile else model
    seconds = [step(called, trained, optimizer, given) for _ in range(given.steps)]
    median = statistics.median(seconds[WARM_UP_STEPS:])
    tokens = given.micro_batch_size * given.num_micro_batches * given.length
    peak = torch.cuda.max_memory_allocated() / 2**30 if given.device == "cuda" else 0.0
    print(f"transformers tokens/s={tokens / median:.0f} step_ms={median * 1e3:.1f} peak_gib={peak:.1f}", flush=True)


def make_model(given: argparse.Namespace) -> torch.nn.Module:
    torch.manual_seed(1)
    with torch.device(given.device):
        config = AutoConfig.from_pretrained(given.model)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    model.config.use_cache = False
    if given.lora:
        from peft import LoraConfig, get_peft_model

        settings = LoraConfig(r=8, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, settings)
    return model.train()


def step(model, trained: list, optimizer: torch.optim.Optimizer, given: argparse.Namespace) -> float:
    """Seconds of a step, the card waited for."""
    started = now(given.device)
    vocabulary = model.get_input_embeddings().num_embeddings
    for _ in range(given.num_micro_batches):
        tokens = torch.randint(vocabulary - 300, (given.micro_batch_size, given.length), device=given.device)
        (model(input_ids=tokens, labels=tokens).loss / given.num_micro_batches).backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return now(given.device) - started


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.monotonic()


if __name__ == "__main__":
    main()
