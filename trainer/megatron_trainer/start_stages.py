"""Notes when rank 0 passes the stages of its start: for the launcher, which tells the operator how long each took, and
for the log.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Final

from megatron_trainer.environment import Environment
from megatron_trainjob.launcher import STAGES, Stage

logger = logging.getLogger(__name__)

_BEGAN: Final = "began"
_IN_WORDS: Final[dict[Stage, str]] = {
    "processGroup": "imports and process group",
    "loaded": "data and model",
    "firstStep": "first step",
}


def begin(path: Path) -> None:
    """Begins the file of an attempt, before its ranks are started; without it where its disk is full."""
    with contextlib.suppress(OSError):
        path.write_text(_line(_BEGAN))


def note(env: Environment, stage: Stage) -> None:
    """Adds a line with the moment by the clock that all processes of a machine share; nothing without a launcher."""
    if env.rank == 0 and env.stages_file is not None:
        with contextlib.suppress(OSError), env.stages_file.open("a") as file:
            file.write(_line(stage))


def first_step_of(env: Environment) -> Callable[[], None]:
    """A function to call after each step; it notes the first, and logs how long the start took."""

    def note_first() -> None:
        note(env, "firstStep")
        if env.rank == 0 and env.stages_file is not None:
            with contextlib.suppress(OSError, ValueError, KeyError):  # of a file that could not be written in full
                logger.info(in_words(env.stages_file))

    return cache(note_first)


def moments(path: Path) -> dict[str, float]:
    """When each stage noted so far was passed. Raises OSError or ValueError where the file cannot be read."""
    noted = [json.loads(line) for line in path.read_text().splitlines()]
    return {each["stage"]: float(each["at"]) for each in noted}


def in_words(path: Path) -> str:
    """The seconds of each stage, for example "first step after 9.3 s: imports and process group 5.9, ..."."""
    found = moments(path)
    passed = [stage for stage in STAGES if stage in found]
    took = [found[stage] - found[before] for before, stage in pairwise([_BEGAN, *passed])]
    parts = (f"{_IN_WORDS[stage]} {seconds:.1f}" for stage, seconds in zip(passed, took, strict=True))
    return f"first step after {sum(took):.1f} s: {', '.join(parts)}"


def _line(stage: str) -> str:
    return json.dumps({"stage": stage, "at": time.monotonic()}) + "\n"
