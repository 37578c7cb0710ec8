"""What the driver says of this node's GPUs (Xid errors), for the record of a rank that failed.

NVML tells errors to whoever waits for them when they happen, so a thread of the launcher does, which has no CUDA
context. Without GPUs, the package nvidia-ml-py or the right to listen nothing is known.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

logger = logging.getLogger(__name__)

POLL_MS = 500
# The numbers of NVIDIA's catalog of Xid errors that training meets. 45 follows the end of any process that used a GPU.
CONSEQUENCE = 45
MEANINGS = {
    13: "exception of the graphics engine: an illegal address or instruction of a kernel",
    31: "page fault: a kernel accessed an illegal address",
    43: "the GPU stopped processing",
    48: "uncorrectable memory error (double-bit ECC)",
    61: "internal error of the GPU's microcontroller",
    62: "internal halt of the GPU's microcontroller",
    63: "memory page retired or row remapped",
    64: "memory page retirement or row remapping failed",
    74: "NVLink error",
    79: "the GPU has fallen off the bus",
    92: "high rate of correctable memory errors",
    94: "contained uncorrectable memory error (ECC)",
    95: "uncontained uncorrectable memory error (ECC)",
    119: "the GPU's system processor does not answer",
    120: "error of the GPU's system processor",
}

Since = Callable[[float], str]
"""What was reported since a moment of the monotonic clock, in words; "" for nothing."""


@contextlib.contextmanager
def listening(*, has_gpus: bool) -> Iterator[Since]:
    """Listens in a thread of its own for as long as the block lasts."""
    noted: list[tuple[float, str]] = []
    stop = threading.Event()
    if has_gpus:
        threading.Thread(target=_listen, args=(noted, stop), name="gpu-errors", daemon=True).start()
    try:
        yield lambda moment: "; ".join(dict.fromkeys(text for at, text in noted if at >= moment))
    finally:
        stop.set()


def _listen(noted: list[tuple[float, str]], stop: threading.Event) -> None:
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        logger.info("GPU errors are not reported: the package nvidia-ml-py is missing")
        return
    try:
        nvml.nvmlInit()
        numbers = {_address(handle): number for number, handle in enumerate(_handles(nvml))}
        events = nvml.nvmlEventSetCreate()
        for handle in _handles(nvml):
            nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, events)
        while not stop.is_set():
            with contextlib.suppress(nvml.NVMLError_Timeout):
                event = nvml.nvmlEventSetWait_v2(events, POLL_MS)
                noted += _noted(event.eventData, numbers.get(_address(event.device)))
    except nvml.NVMLError as error:
        logger.warning("GPU errors are not reported: %s", error)


def _handles(nvml: Any) -> list[Any]:  # noqa: ANN401 (a library without types, and not always there)
    return [nvml.nvmlDeviceGetHandleByIndex(number) for number in range(nvml.nvmlDeviceGetCount())]


def _address(handle: Any) -> int | None:  # noqa: ANN401
    """The pointer within a handle: events bear a handle of their own to the same device."""
    return ctypes.cast(handle, ctypes.c_void_p).value


def _noted(xid: int, number: int | None) -> list[tuple[float, str]]:
    if xid == CONSEQUENCE:
        return []
    meaning = f" ({MEANINGS[xid]})" if xid in MEANINGS else ""
    text = f"GPU {'?' if number is None else number}: Xid {xid}{meaning}"
    logger.error("%s", text)
    return [(time.monotonic(), text)]
