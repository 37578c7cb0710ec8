"""What the containers run: the trainer, and the initializers before it."""

from __future__ import annotations

import hashlib

from megatron_operator.api import names
from megatron_operator.api.values import Initializer
from megatron_operator.core.desired.config_map import FILE_NAME
from megatron_operator.core.job import Job

ARGS_DIRECTORY = "/etc/megatron"

# The marker is written last, so an interrupted fetch is repeated.
FETCH_ONCE = 'test -e "$MARKER" || { mkdir -p "$TARGET_PATH" && "$@" && touch "$MARKER"; }'
WAIT_FOR_FETCH = 'until test -e "$MARKER"; do sleep 2; done'


def command(job: Job) -> list[str]:
    """The trainer's command, or the user's own."""
    trainer = (*names.LAUNCHER, job.task, "--config", f"{ARGS_DIRECTORY}/{FILE_NAME}")
    return list(job.command or trainer)


def initializer_command(initializer: Initializer, node_rank: int) -> list[str]:
    """The master fetches unless it is done already; the workers wait for it."""
    if node_rank == 0:
        return ["sh", "-c", FETCH_ONCE, initializer.name, *initializer.command]
    return ["sh", "-c", WAIT_FOR_FETCH]


def marker(initializer: Initializer) -> str:
    """The file that marks this fetch as done; a different source has a different marker."""
    source = "\n".join((initializer.storage_uri, *initializer.command))
    digest = hashlib.sha256(source.encode()).hexdigest()[:8]
    return f"{initializer.target_path.rstrip('/')}/.mtj-{initializer.name}-{digest}"
