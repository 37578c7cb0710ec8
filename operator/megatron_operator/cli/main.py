"""Parses the command line and runs one command. Exit codes: 0 done, 1 failed, 2 wrong input, 128 + signal."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence

from megatron_operator.cli import (
    checkpoint,
    explain,
    from_args,
    logs,
    plan,
    render,
    run,
    status,
    trainer,
    validate,
    wait,
)

Command = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] and words[0] in trainer.PASSED_ON:
        return trainer.run(words[0], words[1:])
    arguments = parser().parse_args(words)
    command: Command = arguments.command
    try:
        return command(arguments)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader closed the pipe, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return 128 + signal.SIGPIPE


def parser() -> argparse.ArgumentParser:
    """The parser with every command."""
    top = argparse.ArgumentParser(prog="mtj", description="Validate, inspect and run Megatron training jobs.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for module in (run, validate, render, plan, explain, from_args, status, logs, wait, checkpoint, trainer):
        module.register(commands)
    return top
