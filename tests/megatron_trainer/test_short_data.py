"""Data shorter than a step or than a round of ranks: nothing succeeds untrained, every validation row counts."""

import json
from functools import cache

import pytest

from tests.support.matrix import mostly_slow
from tests.support.models import tiny_model
from tests.support.ranks.tiny_run import arguments, train, write_data

pytestmark = pytest.mark.dist

STREAM = {"streaming": True, "max_epochs": 1, "num_workers": 1}
NOTHING_TO_STEP = {
    "an epoch": (
        3,
        1,
        {"max_epochs": 1, "train_iters": None},
        "3 rows to train on: less than one global_batch_size of 4",
    ),
    "a single pass": (3, 1, {"dataloader_type": "single"}, "set dataloader_type to cyclic, lower global_batch_size"),
    "one row, two ranks": (1, 2, {}, "1 rows to train on: fewer than the 2 of one micro-batch on each"),
    "packed rows": (
        18,
        1,
        {"packing": True, "packing_length": 512, "max_epochs": 1, "train_iters": None},
        "packed rows to train on",
    ),
    "a stream": (3, 1, STREAM, "ended before the first step was full"),
    "a stream, two ranks": (6, 2, STREAM | {"global_batch_size": 8}, "of 8 on every"),
}


@pytest.mark.parametrize(("rows", "ranks", "given", "message"), NOTHING_TO_STEP.values(), ids=NOTHING_TO_STEP.keys())
def test_a_run_without_a_step_is_bad_data_and_says_what_to_change(llama, tmp_path, rows, ranks, given, message):
    data = write_data(tmp_path / "few.jsonl", rows=rows)
    run = train(arguments(llama, data, tmp_path / "run", **given), ranks=ranks)
    assert run.exit_code == 65, run.message
    assert message in run.message
    assert "add rows" in run.message
    assert not list(run.folder.glob("iter_*"))


def test_dropped_rows_are_counted_in_the_refusal(llama, tmp_path):
    data = write_data(tmp_path / "few.jsonl", rows=6)
    run = train(arguments(llama, data, tmp_path / "run", max_epochs=1, max_length=40, strict=False, train_iters=None))
    assert run.exit_code == 65
    assert "of 6 rows read were dropped" in run.message


@pytest.fixture(scope="module")
def validation(tmp_path_factory):
    """Five rows of different lengths, each with its number as its channel."""
    path = write_data(tmp_path_factory.mktemp("validation") / "validation.jsonl", rows=5)
    rows = [json.loads(line) | {"channel": str(number)} for number, line in enumerate(path.read_text().splitlines())]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


LAYOUTS = {
    "two ranks": ("llama", 2, {}),
    "two ranks, padded on the left": ("llama", 2, {"padding_free": False, "padding_side": "left"}),
    "micro-batches of two": ("llama", 2, {"micro_batch_size": 2}),
    "pipeline, micro-batches of two": ("llama", 2, {"pipeline_model_parallel_size": 2, "micro_batch_size": 2}),
    "experts over two ranks": ("qwen3_moe", 2, {"expert_model_parallel_size": 2}),
    "without a loss per token": ("llama", 2, {"calculate_per_token_loss": False}),
}


@pytest.fixture(scope="module")
def whole(model_root, validation, tmp_path_factory):
    """evaluated(model, ranks, **arguments): the lines about one evaluation before any learning; made once."""

    @cache
    def evaluated(name, ranks, **given):
        model = tiny_model.make(name, model_root, num_hidden_layers=2)
        save = tmp_path_factory.mktemp("run") / "run"
        common = {"val_dataset": [str(validation)], "train_iters": 1, "lr": 1e-12, "enable_channel_loss": True}
        run = train(arguments(model, validation, save, **common, **given), ranks=ranks)
        assert (run.exit_code, run.message) == (0, "")
        (line,) = [line for line in run.log if "eval_lm loss" in line]
        return {key: value for key, value in line.items() if key.startswith("eval_") and "second" not in key}

    return evaluated


@pytest.mark.parametrize(
    "layout",
    mostly_slow(LAYOUTS, ("two ranks, padded on the left", "pipeline, micro-batches of two", "experts over two ranks")),
)
def test_every_validation_row_counts_in_every_layout(whole, layout):
    """Five rows on two ranks: the last step has one row, and one rank reads nothing but padding."""
    name, ranks, given = LAYOUTS[layout]
    alone, spread = whole(name, 1), whole(name, ranks, **given)
    assert alone["eval_samples"] == 5
    assert {key for key in alone if key.startswith("eval_loss_")} == {f"eval_loss_{number}" for number in range(5)}
    assert spread == pytest.approx(alone, abs=1e-5)
