"""python -m megatron_trainer pt|sft|rlhf|export|data: the entry point in pods and on a single machine."""

from __future__ import annotations

import importlib
import logging
import sys

from megatron_trainer.process import launch
from megatron_trainjob import shown
from megatron_trainjob.args.field import TRAINING_TASKS

COMMANDS = {"export": "megatron_trainer.convert.command", "data": "megatron_trainer.data.command"}


def main() -> int:
    """Starts training ranks for a task, or runs one of the other commands in this process."""
    shown.configure_logging(logging.INFO, "%(asctime)s %(levelname)s %(message)s")
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command in TRAINING_TASKS:
        return launch.main(sys.argv[1:])
    if command in COMMANDS:
        module = importlib.import_module(COMMANDS[command])
        return int(module.main(sys.argv[2:]))
    names = "|".join((*TRAINING_TASKS, *COMMANDS))
    sys.stderr.write(f"usage: python -m megatron_trainer {names} [--config FILE] [--ARGUMENT VALUE]\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
