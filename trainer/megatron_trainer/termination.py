"""The request to stop: SIGTERM ends a rank immediately during startup, and after the current step during training."""

from __future__ import annotations

import signal
from types import FrameType

from megatron_trainer.failure import TrainingError
from megatron_trainjob.exit_codes import ExitCode


class Termination:
    """Listens for SIGTERM and SIGINT. iteration: the last step, for messages about failures."""

    def __init__(self) -> None:
        self.iteration = 0
        self.is_requested = False
        self._waits_for_step = False

    def listen(self) -> None:
        """Installs the signal handlers of this process."""
        signal.signal(signal.SIGTERM, self._request)
        signal.signal(signal.SIGINT, self._request)

    def wait_for_step(self) -> None:
        """From now on a request is only recorded; the loop ends after the step."""
        self._waits_for_step = True

    def _request(self, _signal: int, _frame: FrameType | None) -> None:
        self.is_requested = True
        if not self._waits_for_step:
            raise TrainingError(ExitCode.PREEMPTED, "stopped before the first step")
