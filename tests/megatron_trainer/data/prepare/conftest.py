"""Fixtures of the tests that prepare data: files of numbered rows, and which of them come out in which order."""

import json

import pytest

from megatron_trainer.data.prepare import prepare
from megatron_trainjob.args.tree import TrainArgs
from tests.support.data.answers import answers as trained_answers
from tests.support.models.text_models import chatml_tokenizer


@pytest.fixture
def tokenizer():
    return chatml_tokenizer()


@pytest.fixture
def write(tmp_path):
    """write(name, numbers) makes a file in which row n asks for n and answers n."""

    def write(name, numbers, extra=()):
        rows = [{"query": f"q{n}", "response": f"r{n}", "channel": name[0]} for n in numbers]
        path = tmp_path / name
        path.write_text("".join(line + "\n" for line in [*map(json.dumps, rows), *extra]))
        return str(path)

    return write


@pytest.fixture
def run(tmp_path, tokenizer):
    """run(dataset=..., ...) prepares with these arguments; tests read the answers that come out."""

    def run(task="sft", max_length=200, progress=None, tokenizer=tokenizer, is_first_rank=True, **fields):
        fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
        return prepare(
            TrainArgs(**fields),
            tokenizer,
            task=task,
            max_length=max_length,
            save=tmp_path / "save",
            is_first_rank=is_first_rank,
            progress=progress,
        )

    return run


@pytest.fixture
def answers():
    """The numbers of the rows of a dataset, in order."""
    return lambda dataset: [int(answer.removeprefix("r")) for answer in trained_answers(dataset)]
