"""A callback of transformers' Trainer that leaves logging.jsonl as ours does: seconds, tokens, peak memory of a step.

A step's seconds go from the end of the one before to its own, the card waited for.
"""

import json
import resource
import time
from pathlib import Path

import torch
from transformers import TrainerCallback

GIB = 2**30


class Clock(TrainerCallback):
    """tokens: of each step. key: what the lines of a step, and no others, have in transformers' own log."""

    def __init__(self, path: Path, tokens: list[int], *, key: str, on_card: bool) -> None:
        self.path, self.tokens, self.key, self.on_card = path, tokens, key, on_card
        self.lines: list[dict] = []
        self.started = self.seconds = 0.0

    def now(self) -> float:
        if self.on_card:
            torch.cuda.synchronize()
        return time.monotonic()

    def on_step_begin(self, args, state, control, **_):
        self.started = self.started or self.now()

    def on_step_end(self, args, state, control, **_):
        ended = self.now()
        self.seconds, self.started = ended - self.started, ended

    def on_log(self, args, state, control, logs=None, **_):
        if self.key in (logs or {}):
            own = {
                "tokens": self.tokens[state.global_step - 1],
                "elapsed_time_per_iteration": self.seconds,
                "memory(GiB)": self.peak() / GIB,
            }
            self.lines.append({**logs, **own})

    def on_train_end(self, args, state, control, **_):
        self.path.write_text("".join(json.dumps(line) + "\n" for line in self.lines))

    def peak(self) -> int:
        if self.on_card:
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
