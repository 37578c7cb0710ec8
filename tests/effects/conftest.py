"""Runs for effect tests: `train(**arguments)` on the tiny Llama, each in a folder of its own.

A step is two micro-batches of one row: gradients are accumulated, at half the cost of the four of tiny_run.arguments.
"""

import pytest

from tests.support.models import tiny_model
from tests.support.ranks import tiny_run
from tests.support.ranks.tiny_run import TinyRun

SHORT_STEPS = {"global_batch_size": 2}


@pytest.fixture(scope="session")
def llama(model_root):
    """A tiny random Llama with two layers: runs here are many, and few of them need more (four_layers)."""
    return tiny_model.make("llama", model_root, num_hidden_layers=2)


@pytest.fixture(scope="session")
def four_layers(model_root):
    """The same with four layers, for stages of a pipeline."""
    return tiny_model.make("llama", model_root)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """18 short conversations."""
    return tiny_run.write_data(tmp_path_factory.mktemp("data") / "train.jsonl")


@pytest.fixture
def train(llama, data, tmp_path):
    """train(**arguments): a run with these arguments. name=: its folder; ranks, stop_at, resume, attempt, task too.

    as_program=True goes through the command line and captures what is printed.
    """
    count = iter(range(100))

    def run(
        *,
        name: str | None = None,
        ranks: int = 1,
        task: str = "sft",
        stop_at: int | None = None,
        resume: str = "Never",
        attempt: int = 0,
        as_program: bool = False,
        **arguments: object,
    ) -> TinyRun:
        given = tiny_run.arguments(llama, data, tmp_path / (name or f"run{next(count)}")) | SHORT_STEPS | arguments
        given = {key: value for key, value in given.items() if value is not None}
        if as_program:
            return tiny_run.run_program(given, task=task)
        return tiny_run.train(given, ranks=ranks, task=task, stop_at=stop_at, resume=resume, attempt=attempt)

    return run


@pytest.fixture(scope="session")
def plain(llama, data, tmp_path_factory):
    """The run that others are compared with: four steps of full training, exported."""
    save = tmp_path_factory.mktemp("plain") / "run"
    run = tiny_run.train(tiny_run.arguments(llama, data, save, to_hf=True, **SHORT_STEPS))
    assert run.exit_code == 0, run.message
    return run
