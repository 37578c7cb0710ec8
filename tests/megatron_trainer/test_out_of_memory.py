"""GPU memory that runs out in a step: an exit code of its own, and settings that would fit. Real tiny runs."""

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from megatron_trainer import out_of_memory
from megatron_trainjob import termination
from megatron_trainjob.exit_codes import ExitCode
from tests.support.ranks import memory_faults
from tests.support.ranks.pool import gloo_ranks
from tests.support.ranks.tiny_run import arguments, write_data

TORCH = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB"
FAULT = torch.OutOfMemoryError(TORCH)
GIB = 1024**3


def raised_from(cause: BaseException) -> BaseException:
    try:
        raise ValueError("a step failed") from cause
    except ValueError as error:
        return error


@pytest.mark.parametrize(
    "error",
    [
        FAULT,
        CheckpointException("save", {3: (FAULT, None)}),
        raised_from(FAULT),
        ExceptionGroup("writers", [OSError("disk"), FAULT]),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("ncclUnhandledCudaError: Call to CUDA function failed.\nCuda failure 2 'out of memory'"),
    ],
    ids=["torch", "checkpoint", "cause", "group", "driver", "cublas", "nccl"],
)
def test_every_way_in_which_a_devices_memory_runs_out_is_known(error):
    assert out_of_memory.is_cause(error)


@pytest.mark.parametrize(
    "error",
    [
        CheckpointException("save", {3: (OSError("No space left on device"), None)}),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        MemoryError(),
    ],
    ids=["disk", "illegal access", "host"],
)
def test_other_errors_are_not_taken_for_it(error):
    assert not out_of_memory.is_cause(error)


def test_a_device_that_cannot_be_asked_costs_the_advice_and_not_the_reason():
    def broken() -> int:
        raise RuntimeError("CUDA driver error")

    message = out_of_memory.explain(FAULT, object(), "sft", 1, broken)
    assert "change one of" in message
    assert TORCH in message


@pytest.mark.dist
@pytest.mark.parametrize(
    ("fault", "available_bytes", "said"),
    [
        (FAULT, 3 * GIB, "of 3.0 GiB"),
        (RuntimeError("CUDA error: out of memory"), None, "By the estimate they need"),
        (FAULT, 1 * GIB, "change one of micro_batch_size"),
    ],
    ids=["settings", "driver", "too small for any"],
)
def test_a_step_that_runs_out_of_memory_ends_with_its_code_and_advice(llama, tmp_path, fault, available_bytes, said):
    data = write_data(tmp_path / "train.jsonl")
    given = arguments(llama, data, tmp_path / "run", micro_batch_size=2, max_length=128, save_interval=100)
    record = tmp_path / "failure.json"
    run = gloo_ranks(1).run(memory_faults.full_device_rank, given, fault, 3, available_bytes, record)[0]
    left = termination.read(record)
    assert run.exit_code == left.exit_code == ExitCode.OUT_OF_DEVICE_MEMORY
    assert (left.reason, left.iteration) == ("OUT_OF_DEVICE_MEMORY", 1)
    assert said in left.message
    assert str(fault)[:40] in left.message
