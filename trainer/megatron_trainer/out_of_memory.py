"""Out-of-memory errors of the device: how they are recognized, and what to change in the manifest."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import torch
from torch.distributed.checkpoint.api import CheckpointException

from megatron_trainer import model_source
from megatron_trainjob import input_file, memory
from megatron_trainjob.args.field import TrainingTask
from megatron_trainjob.args.model.check import check
from megatron_trainjob.args.parse import Accepted
from megatron_trainjob.memory import fitting
from megatron_trainjob.tokenizer_folder import CONFIG_FILE

logger = logging.getLogger(__name__)

GIB = 1024**3
MAX_CHARACTERS_OF_TORCH = 320
_WORDS = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "Cuda failure 2 'out of memory'")
"""Messages of the driver, cuBLAS and NCCL, whose allocations are not made by torch."""


def is_cause(error: BaseException) -> bool:
    """Whether the device ran out of memory, here or on a rank whose failure the error carries."""
    return any(
        isinstance(each, torch.OutOfMemoryError) or (isinstance(each, RuntimeError) and _says_so(each))
        for each in _with_causes(error)
    )


def explain(
    error: BaseException,
    accepted: Accepted | None,
    task: TrainingTask,
    world_size: int,
    measure: Callable[[], int | None],
) -> str:
    """The failure, and settings that would fit; if these cannot be computed, the arguments to change.

    measure: bytes of one device, None if unknown; after a driver error it may raise, which only loses the advice.
    """
    found = next((each for each in _with_causes(error) if isinstance(each, torch.OutOfMemoryError)), error)
    said = " ".join(str(found).split())[:MAX_CHARACTERS_OF_TORCH]
    remedy = _remedy(accepted, task, world_size, measure)
    return f"out of GPU memory; the same settings would run out again. {remedy}. {said}"


def _remedy(accepted: Accepted | None, task: TrainingTask, world_size: int, measure: Callable[[], int | None]) -> str:
    try:
        return _computed(accepted, task, world_size, measure()) if accepted else _by_name()
    except Exception as err:  # noqa: BLE001 - whatever it is, the failure that it explains goes first
        logger.warning("cannot compute which settings fit: %s", err)
        return _by_name()


def _computed(accepted: Accepted, task: TrainingTask, world_size: int, available_bytes: int | None) -> str:
    config = input_file.read_json(model_source.folder(accepted.args) / CONFIG_FILE)
    shape = check(config, accepted.args).model
    if shape is None:
        return _by_name()
    now = memory.estimate(accepted.args, shape, world_size, task=task).peak.total
    room = "" if available_bytes is None else f" of {available_bytes / GIB:.1f}"
    need = f"By the estimate they need {now / GIB:.1f}{room} GiB"
    found = fitting.proposals(accepted, shape, world_size, task=task, available_bytes=available_bytes, hf_config=config)
    if not found:
        return f"{need}, and no smaller batch, recomputation, moments in bf16 or half length is enough: {_by_name()}"
    which = "each of these" if len(found) > 1 else "this"
    return f"{need}. In spec.args {which} would fit: {'; '.join(map(str, found))}"


def _by_name() -> str:
    return f"change one of {', '.join(fitting.ARGUMENTS_TO_TURN)}, or give more GPUs"


def _says_so(error: RuntimeError) -> bool:
    return any(words in str(error) for words in _WORDS)


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """The error, its causes, and the errors of other ranks gathered by torch's checkpointing."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += [each.__cause__, None if each.__suppress_context__ else each.__context__]
        if isinstance(each, CheckpointException):
            waiting += [wrapped for wrapped, _ in each.failures.values()]
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions
