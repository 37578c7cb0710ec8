"""For effect tests: `train(**arguments)` on the tiny Llama, in a folder of its own, and `prepared(**arguments)`.

A step is two micro-batches of one row: gradients are accumulated, at half the cost of the four of tiny_run.arguments.
"""

import json
from collections.abc import Callable, Iterable

import pytest

from megatron_trainer.data.prepare import Prepared, prepare
from megatron_trainjob.args.parse import Accepted, parse
from tests.support.data.answers import TOKENIZER
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


@pytest.fixture
def write(tmp_path):
    """write(name, rows): the path of a file of these rows."""

    def write(name: str, rows: Iterable[object]) -> str:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    return write


@pytest.fixture
def rows():
    """Twenty questions q0, q1 ... with the answers r0, r1 ..."""
    return [{"query": f"q{n}", "response": f"r{n}"} for n in range(20)]


@pytest.fixture
def prepared(tmp_path, write, rows):
    """prepared(**arguments): what a run with these arguments trains on; data: 20 questions, unless given."""

    def run(task: str = "sft", progress: Callable[[str, int], None] | None = None, **arguments: object) -> Prepared:
        dataset = [] if "cached_dataset" in arguments else [write("train.jsonl", rows)]
        given = {"model": "m", "dataset": dataset, "max_length": 200, "train_iters": 1, **arguments}
        parsed = parse(given, task=task)
        assert isinstance(parsed, Accepted), parsed
        return prepare(
            parsed.args,
            TOKENIZER,
            task=task,
            max_length=parsed.args.max_length,
            save=tmp_path / "save",
            is_first_rank=True,
            progress=progress,
        )

    return run
