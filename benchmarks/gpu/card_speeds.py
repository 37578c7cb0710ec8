"""Speed of a shape under the trainer and under megatron-core alone, and the memory that `mtj plan` says it needs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from card_cases import Speed

from megatron_trainjob import memory
from megatron_trainjob.args.model.check import check
from megatron_trainjob.args.parse import Accepted, parse
from megatron_trainjob.memory.fitting import HEADROOM
from tests.support.models import tiny_model

GIB = 1024**3
WARM_UP_STEPS = 6
POLL_S = 0.2
RELEASE_S = 2.0  # until the driver has taken back the memory of killed processes
COMMON: Mapping[str, Any] = {
    "add_version": False,
    "no_initialization": False,
    "torch_dtype": "bfloat16",
    "packing": True,
    "max_length": 4096,
    "truncation_strategy": "right",
    "train_iters": 1000,
    "save_interval": 100_000,
    "log_interval": 2,
    "log_throughput": True,
    "num_workers": 2,
    "no_save_optim": True,
    "lr": 1e-5,
}


class SpeedFailed(Exception):
    """No step came, or not in time; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Medians of the steps after the sixth; planned_gib is what the plan said of the fullest rank."""

    tokens_per_second_per_card: float
    mfu: float | None
    peak_gib: float
    planned_gib: float
    depth: int


def arguments_of(case: Speed, model: Path, data: Path, save: Path) -> dict[str, Any]:
    """What the trainer is given."""
    return {**COMMON, **case.arguments, "model": str(model), "dataset": [str(data)], "save": str(save)}


def planned_bytes(case: Speed, shape: Mapping[str, Any]) -> int:
    """Of the fullest rank, as `mtj plan` computes it. Raises SpeedFailed where the arguments are refused."""
    parsed = parse(arguments_of(case, Path("model"), Path("data"), Path("save")), task="sft")
    if not isinstance(parsed, Accepted):
        raise SpeedFailed(f"refused: {parsed.violations[0]}")
    model = check(shape, parsed.args).model
    if model is None:
        raise SpeedFailed("the shape is refused")
    return memory.estimate(parsed.args, model, case.num_cards, task="sft").peak.total


def fitted(case: Speed, card_bytes: int) -> Speed:
    """With as many layers as a card holds, where the case asks for that."""
    if case.depth == "whole":
        return case
    for depth in range(case.shape["num_hidden_layers"], 0, -1):
        shape = {**case.shape, "num_hidden_layers": depth}
        if planned_bytes(case, shape) <= HEADROOM * card_bytes:
            return replace(case, shape=shape, depth=str(depth))
    raise SpeedFailed("not even one layer fits")


def write_inputs(case: Speed, folder: Path, data: Path | None, tokenizer: Path | None) -> tuple[Path, Path]:
    """The folders of the model's shape and of rows that are all longer than any row may be."""
    model = folder / re.sub(r"\W+", "-", case.name)
    if tokenizer is None:
        tiny_model.tokenizer().save_pretrained(model)
    else:
        model.mkdir()
        for file in tokenizer.iterdir():
            (model / file.name).write_bytes(file.read_bytes())
    (model / "config.json").write_text(json.dumps(case.shape))
    length = case.arguments.get("max_length", COMMON["max_length"])
    rows = folder / f"rows-{length}.jsonl"
    if not rows.exists():
        _write_rows(rows, length, answers(data))
    return model, rows


def answers(data: Path | None) -> list[str]:
    """Texts of the given conversations, or made-up ones."""
    if data is None:
        words = ("quick", "brown", "foxes", "jump", "over", "lazy", "dogs", "and", "print", "the", "sum", "of", "both")
        return [" ".join(words[(i * k) % len(words)] for k in range(1, 200)) for i in range(1, 40)]
    return [json.loads(line)["messages"][-1]["content"] for line in data.read_text().splitlines()]


def _write_rows(path: Path, length: int, texts: list[str]) -> None:
    """Rows that join texts; eight characters are more than a token in any vocabulary."""
    rows, number = [], 0
    for row in range(16 if length > 8192 else 160):
        text = ""
        while len(text) < 8 * length:
            text += texts[number % len(texts)] + "\n\n"
            number += 7
        question = f"Tell me all that you know, number {row}."
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
        rows.append(json.dumps({"messages": turns}))
    path.write_text("\n".join(rows) + "\n")


def measure(case: Speed, model: Path, data: Path, folder: Path) -> Measured:
    """Trains until enough steps are logged, then kills the training. Raises SpeedFailed."""
    folder.mkdir()
    planned = planned_bytes(case, case.shape) / GIB
    config = folder / "arguments.yaml"
    config.write_text(yaml.safe_dump(arguments_of(case, model, data, folder / "run")))
    environment = {
        "NPROC_PER_NODE": str(case.num_cards),
        "MTJ_TERMINATION_LOG": str(folder / "failure.json"),
        "HF_HUB_OFFLINE": "1",
        **case.environment,
    }
    command = [sys.executable, "-m", "megatron_trainer", "sft", "--config", str(config)]
    log = folder / "run" / "logging.jsonl"
    with running(command, folder / "log", environment, case.num_cards) as process:
        until = time.monotonic() + case.limit_s
        while process.poll() is None and time.monotonic() < until and _last_step(log) < case.steps:
            time.sleep(POLL_S)
        code = process.poll()
    warm = [line for line in _lines(log) if line["iteration"] > WARM_UP_STEPS]
    if not warm:
        said = folder / "failure.json"
        why = json.loads(said.read_text())["message"] if said.exists() else f"exit code {code}, see {folder / 'log'}"
        raise SpeedFailed(" ".join(why.split())[:300])
    return Measured(
        tokens_per_second_per_card=statistics.median(line["tokens_per_second_per_gpu"] for line in warm),
        mfu=statistics.median(line["mfu"] for line in warm) if "mfu" in warm[0] else None,
        peak_gib=max(line["memory(GiB)"] for line in warm),
        planned_gib=planned,
        depth=case.shape["num_hidden_layers"],
    )


def measure_raw(case: Speed, model: Path, log: Path) -> float:
    """Tokens per second and card of megatron-core alone. Raises SpeedFailed."""
    micro, in_a_row, *options = case.raw or ()
    program = str(Path(__file__).with_name("raw_megatron_core.py"))
    sizes = ["--micro-batch-size", micro, "--num-micro-batches", in_a_row]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(case.num_cards)]
    with running([*launch, program, str(model), *sizes, *options], log, {}, case.num_cards) as process:
        try:
            process.wait(case.limit_s)
        except subprocess.TimeoutExpired:
            raise SpeedFailed(f"megatron-core alone did not end within {case.limit_s:.0f} s") from None
    found = re.search(r"tokens/s=(\d+)", log.read_text(errors="replace"))
    if found is None:
        errors = [line for line in log.read_text(errors="replace").splitlines() if "Error" in line]
        raise SpeedFailed(f"megatron-core alone: {(errors or ['no result'])[-1].strip()[:200]}")
    return int(found[1]) / case.num_cards


@contextlib.contextmanager
def running(
    command: list[str], log: Path, environment: Mapping[str, str], num_cards: int
) -> Iterator[subprocess.Popen[bytes]]:
    """A program on the first cards that are visible, with a session of its own; all of it is killed at the end."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    cards = ",".join(visible[:num_cards] if visible != [""] else map(str, range(num_cards)))
    variables = {**os.environ, "CUDA_VISIBLE_DEVICES": cards, **environment}
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=variables, stdout=output, stderr=output, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(RELEASE_S)


def _lines(log: Path) -> list[dict[str, Any]]:
    lines = log.read_text().splitlines() if log.exists() else []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:  # half of a line that is being written
            continue
    return [line for line in found if "tokens_per_second_per_gpu" in line]


def _last_step(log: Path) -> int:
    lines = _lines(log)
    return lines[-1]["iteration"] if lines else 0
