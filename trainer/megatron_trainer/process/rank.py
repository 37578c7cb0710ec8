"""The program of one rank: selects the backend, then imports Megatron and trains.

megatron-core decides at import time which GPU libraries it uses, so the backend has to be installed first.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from megatron_trainer import backend
from megatron_trainjob.exit_codes import ExitCode


def main(argv: Sequence[str]) -> int:
    """Runs the rank; returns its exit code."""
    gc.disable()  # what an import makes stays: collecting meanwhile takes a quarter of its time
    backend.select().install()
    from megatron_trainer.process import run

    gc.enable()
    return run.main(argv)


def run(argv: Sequence[str]) -> NoReturn:
    """Runs the rank and ends this process with its exit code."""
    code = main(argv)
    sys.stdout.flush()
    sys.stderr.flush()
    if code not in (ExitCode.OK, ExitCode.PREEMPTED):
        os._exit(code)  # peers may be gone: an orderly shutdown of the process group would wait for them
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
    sys.exit(code)


if __name__ == "__main__":
    run(sys.argv[1:])
