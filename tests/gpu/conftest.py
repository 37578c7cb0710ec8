"""One GPU for the tests of this folder: pytest's own process is the only rank. `pytest -m gpu tests/gpu`."""

import os
from pathlib import Path

import pytest

from tests.support.ranks import gpu_training, tiny_run

# Read once, when CUDA's libraries start: float32 products stay float32 (TransformerEngine asks for TF32), the same
# product gives the same bits each time, and kernels start in one order over all streams, as the launcher has it.
ENVIRONMENT = {
    "NVIDIA_TF32_OVERRIDE": "0",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "CUDA_DEVICE_MAX_CONNECTIONS": "1",
}
ATTENTION_CHOICE = ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN")


@pytest.fixture(autouse=True)
def gpu(tmp_path):
    """The backend, with the process group of one rank around it, ended after each test: NCCL's groups hold memory."""
    os.environ.update(ENVIRONMENT)
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    choose_attention_anew()
    with gpu_training.single_rank(tmp_path / "store") as backend:
        yield backend


def choose_attention_anew() -> None:
    """Megatron leaves each model's choice of attention kernels in the environment, where the next one trips over it."""
    for name in ATTENTION_CHOICE:
        os.environ.pop(name, None)
    gpu_training.forget_attention_kernels()


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """18 short conversations."""
    return tiny_run.write_data(tmp_path_factory.mktemp("data") / "train.jsonl")


@pytest.fixture
def train(llama, data, tmp_path):
    """train(**arguments) on a tiny Llama, each run in a folder of its own; model=, resume= and count_kernels= too."""
    count = iter(range(100))

    def run(
        *,
        model: Path = llama,
        resume: str = "Never",
        folder: Path | None = None,
        count_kernels: bool = False,
        **given: object,
    ):
        choose_attention_anew()
        places = {"model": model, "data": data, "save": folder or tmp_path / f"run{next(count)}"}
        return gpu_training.train(given, **places, resume=resume, count_kernels=count_kernels)

    return run
