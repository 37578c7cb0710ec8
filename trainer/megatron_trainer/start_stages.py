"""Notes when rank 0 passes the stages of its start, for the launcher, which tells the operator how long each took."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import cache

from megatron_trainer.environment import Environment
from megatron_trainjob.launcher import Stage


def note(env: Environment, stage: Stage) -> None:
    """Adds a line with the moment by the clock that all processes of a machine share; nothing without a launcher."""
    if env.rank == 0 and env.stages_file is not None:
        with env.stages_file.open("a") as file:
            file.write(json.dumps({"stage": stage, "at": time.monotonic()}) + "\n")


def first_step_of(env: Environment) -> Callable[[], None]:
    """A function to call after each step; it notes the first."""
    return cache(lambda: note(env, "firstStep"))
