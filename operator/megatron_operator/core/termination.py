"""The termination message of a container: the record that the trainer's launcher leaves, or any other text.

Any program in a pod may write anything there, so each field is accepted only with the right type and within bounds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from megatron_operator.core import kubelet_reasons
from megatron_operator.guard import shortened, whole_number
from megatron_trainjob import termination

MAX_CHARACTERS = 16 * 1024  # the kubelet truncates at 4 KiB per container
MAX_REASON_CHARACTERS = 128
LARGEST = 2**53
MAX_BRACKETS = 256


@dataclass(frozen=True, kw_only=True)
class Record:
    """The trainer's termination record; each field None where it is missing or unusable."""

    exit_code: int | None = None
    rank: int | None = None
    reason: str | None = None
    message: str | None = None
    iteration: int | None = None
    host: str | None = None
    stack: str | None = None
    gpu_error: str | None = None


def read(text: object) -> Record:
    """The trainer's record, an empty one for any other text: other JSON, such as a log line, is only text."""
    if not isinstance(text, str) or len(text) > MAX_CHARACTERS or not text.lstrip().startswith("{"):
        return Record()
    if text.count("{") + text.count("[") > MAX_BRACKETS:
        return Record()
    try:
        found = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return Record()
    if not isinstance(found, Mapping) or not isinstance(found.get(termination.REASON), str):
        return Record()
    return Record(
        exit_code=_whole(found.get(termination.EXIT_CODE)),
        rank=_whole(found.get(termination.RANK)),
        reason=_reason(found[termination.REASON]),
        message=shortened(found.get(termination.MESSAGE), termination.MAX_MESSAGE_CHARACTERS) or None,
        iteration=_whole(found.get(termination.ITERATION)),
        host=shortened(found.get(termination.HOST), termination.MAX_HOST_CHARACTERS) or None,
        stack=shortened(found.get(termination.STACK), termination.MAX_STACK_CHARACTERS) or None,
        gpu_error=shortened(found.get(termination.GPU_ERROR), termination.MAX_GPU_ERROR_CHARACTERS) or None,
    )


def _reason(value: str) -> str | None:
    """The trainer's reason; one that only a kubelet can know is not accepted from it."""
    reason = shortened(value, MAX_REASON_CHARACTERS)
    return None if not reason or kubelet_reasons.is_kubelets(reason) else reason


def _whole(value: object) -> int | None:
    return whole_number(value, smallest=0, largest=LARGEST)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
