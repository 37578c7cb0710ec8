"""MTJ_DEVICE: cuda is obeyed or refused; nothing runs on the CPU instead."""

import pytest

from megatron_trainer.backend import CpuBackend, refuse_missing_gpu
from megatron_trainer.failure import TrainingError


@pytest.mark.parametrize("asked", [None, "cpu"])
def test_the_cpu_is_taken_where_no_gpu_is_asked_for(monkeypatch, asked):
    monkeypatch.delenv("MTJ_DEVICE", raising=False)
    if asked:
        monkeypatch.setenv("MTJ_DEVICE", asked)
    refuse_missing_gpu(CpuBackend())


def test_a_gpu_that_is_asked_for_and_missing_is_an_error(monkeypatch):
    monkeypatch.setenv("MTJ_DEVICE", "cuda")
    with pytest.raises(TrainingError, match="MTJ_DEVICE is cuda, but torch finds no GPU here; correct the driver"):
        refuse_missing_gpu(CpuBackend())
