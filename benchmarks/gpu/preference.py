"""DPO on one card: this trainer and TRL's DPOTrainer on the same pairs, one after the other, tokens/s and peak memory.

python3 benchmarks/gpu/preference.py OUT DATA.jsonl TOKENIZER_DIR [--train full lora] [--rows varied equal] [--steps 20]
    on a processor, to try the program: --shape tiny --device cpu --micro-pairs 2 --max-length 128 --steps 8

The model has SmolLM2-1.7B's shape and random weights in bfloat16. Pairs are made of the answers in DATA, joined: to
different lengths with `varied` rows; with `equal` ones all sequences are cut to the same length, so that no padding can
be saved. Both trainers take the same pairs in the same order, and the table shows the tokens of a step of each.

    ours           the trainer's defaults; `packed` lays as many pairs in a row as fit
    trl defaults   DPOConfig as it comes (gradient checkpointing; full training: float32 weights under autocast)
    trl fastest    weights and optimizer in bfloat16, no gradient checkpointing

Needs beside torch, transformers, peft and accelerate: megatron-core, TransformerEngine, trl, datasets (with dill and
multiprocess); the wheels of these are enough, nothing is asked of a network. The sixteen runs of the defaults take more
than ten minutes: `--train full` and then `--train lora` halve them.
"""

import argparse
import itertools
import json
import shutil
from pathlib import Path

import torch
import yaml
from beside_peer import call, print_table, rates, steps
from shapes import SHAPE, TINY
from transformers import AutoConfig, AutoModelForCausalLM

HERE = Path(__file__).parent
SHAPES = {"smollm2-1.7b": SHAPE, "tiny": TINY}
CASES = {
    "trl fastest": {"checkpointing": False},
    "trl defaults": {"checkpointing": True},
    "ours": {},
    "ours packed": {"packing": True},
}
RATES = {"full": 1e-5, "lora": 1e-4}
LORA = {"train_type": "lora", "lora_rank": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": ["all-linear"]}


def main() -> None:
    given = options()
    given.out.mkdir(parents=True, exist_ok=True)
    model = make_model(given)
    pairs_of_a_step = f"{given.micro_pairs} x {given.num_micro_batches} pairs a step"
    print(f"{given.shape}, {pairs_of_a_step}, at most {given.max_length} tokens a sequence", flush=True)
    for rows in given.rows:
        pairs = write_pairs(given, rows)
        for kind in given.train:
            runs = ((name, measure(given, model, pairs, kind, name)) for name in given.cases)
            print_table(f"{kind}, {pairs.stem} rows", "trl", ("first loss", "last margin"), runs)


def options() -> argparse.Namespace:
    known = argparse.ArgumentParser()
    known.add_argument("out", type=Path)
    known.add_argument("data", type=Path)
    known.add_argument("tokenizer", type=Path)
    known.add_argument("--train", nargs="+", choices=("full", "lora"), default=["full", "lora"])
    known.add_argument("--rows", nargs="+", choices=("varied", "equal"), default=["varied", "equal"])
    known.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    known.add_argument("--shape", choices=SHAPES, default="smollm2-1.7b")
    known.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    known.add_argument("--max-length", type=int, default=1024)
    known.add_argument("--micro-pairs", type=int, default=4)
    known.add_argument("--num-micro-batches", type=int, default=2)
    known.add_argument("--steps", type=int, default=20)
    known.add_argument("--timeout", type=int, default=240, help="seconds for one run")
    given = known.parse_args()
    given.out = given.out.absolute()
    return given


def make_model(given: argparse.Namespace) -> Path:
    """A folder with random weights, which both load."""
    folder = given.out / "model"
    if not (folder / "config.json").exists():
        shutil.copytree(given.tokenizer, folder, dirs_exist_ok=True)
        shape = dict(SHAPES[given.shape])
        torch.manual_seed(1)
        with torch.device(given.device):
            made = AutoModelForCausalLM.from_config(
                AutoConfig.for_model(**shape), dtype=getattr(torch, shape["torch_dtype"])
            )
        made.save_pretrained(folder)
        del made
    return folder


def write_pairs(given: argparse.Namespace, rows: str) -> Path:
    """Prompts with two answers that join answers of the data; for equal rows so many that each is cut."""
    data = [json.loads(line)["messages"][-1]["content"] for line in given.data.read_text().splitlines()]
    texts, path, lines = itertools.cycle(dict.fromkeys(data)), given.out / f"{rows}.jsonl", []
    for number in range(given.steps * given.micro_pairs * given.num_micro_batches):
        answers = []
        for side, name in enumerate(("First", "Second")):
            eighths = 12 if rows == "equal" else 1 + (5 * number + 3 * side) % 8
            answer = f"{name} answer, {number}."  # cut ones differ, too
            while len(answer) < eighths * given.max_length // 2:
                answer += "\n\n" + next(texts)
            answers.append(answer)
        question = {"role": "user", "content": f"Tell me all that you know, {number}."}
        turns = [question, {"role": "assistant", "content": answers[0]}]
        lines.append(json.dumps({"messages": turns, "rejected_response": answers[1]}))
    path.write_text("\n".join(lines) + "\n")
    return path


def measure(given: argparse.Namespace, model: Path, pairs: Path, kind: str, name: str) -> dict[str, float] | str:
    """What a run measured, or why it ended."""
    folder = given.out / f"{kind}-{pairs.stem}-{name.replace(' ', '-')}"
    run = run_ours if name.startswith("ours") else run_trl
    with (given.out / f"{folder.name}.log").open("w") as log:
        code = run(given, model, pairs, kind, folder, CASES[name], log)
    text = Path(log.name).read_text()
    if code:
        return "out of memory" if "OutOfMemory" in text or "out of memory" in text else f"exit {code}, see {log.name}"
    measured = summary(folder / "logging.jsonl")
    for checkpoint in folder.glob("iter_*"):
        shutil.rmtree(checkpoint)
    return measured


def run_ours(given, model, pairs, kind, folder, case, log) -> int:
    tokens_in_row = 2 * given.micro_pairs * given.max_length
    arguments = {
        "model": str(model),
        "dataset": [str(pairs)],
        "save": str(folder),
        "add_version": False,
        "max_length": given.max_length,
        "truncation_strategy": "right",
        "micro_batch_size": given.micro_pairs,
        "global_batch_size": given.micro_pairs * given.num_micro_batches,
        "train_iters": given.steps,
        "dataloader_type": "single",
        "dataset_shuffle": False,
        "log_interval": 1,
        "num_workers": 2,
        "no_save_optim": True,
        "beta": 0.1,
        "lr": RATES[kind],
        "lr_decay_style": "constant",
        "weight_decay": 0.0,
        **(LORA if kind == "lora" else {}),
    }
    if case:  # a row holds what a micro-batch of padded pairs could
        packed = {"packing": True, "packing_length": tokens_in_row, "micro_batch_size": 1}
        arguments |= {**packed, "global_batch_size": given.num_micro_batches, "train_iters": None, "max_epochs": 1}
    given_ones = {key: value for key, value in arguments.items() if value is not None}
    (given.out / "ours.yaml").write_text(yaml.safe_dump(given_ones))
    environment = {"NPROC_PER_NODE": "1", "MTJ_TERMINATION_LOG": f"{folder}.failure"}
    if given.device == "cpu":
        environment["MTJ_DEVICE"] = "cpu"
    return call(
        ["-m", "megatron_trainer", "rlhf", "--config", str(given.out / "ours.yaml")], environment, log, given.timeout
    )


def run_trl(given, model, pairs, kind, folder, case, log) -> int:
    settings = {
        "model": str(model),
        "pairs": str(pairs),
        "folder": str(folder),
        "device": given.device,
        "lora": kind == "lora",
        "rate": RATES[kind],
        "max_length": given.max_length,
        "micro_pairs": given.micro_pairs,
        "num_micro_batches": given.num_micro_batches,
        "steps": given.steps,
        **case,
    }
    return call([str(HERE / "preference_trl.py"), json.dumps(settings)], {}, log, given.timeout)


def summary(log: Path) -> dict[str, float]:
    """The rates, the first loss and the last margin."""
    lines = steps(log, "rewards/margins")
    return {**rates(lines), "first loss": lines[0]["loss"], "last margin": lines[-1]["rewards/margins"]}


if __name__ == "__main__":
    main()
